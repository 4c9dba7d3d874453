#include "rpc/link_stream.h"

#include <utility>

#include <fmt/format.h>

#include "rpc/link.h"

namespace recua::rpc {

std::shared_ptr<LinkStream> make_link_stream(std::unique_ptr<net::Connection> connection,
                                             std::string peer) {
  if (peer.empty()) peer = connection->peer();
  return std::make_shared<LinkStream>(std::move(connection), std::move(peer));
}

void LinkStream::leave(const StreamUser& user) {
  if (&user == sender_) sender_ = nullptr;
  if (&user == receiver_) receiver_ = nullptr;
  if (failure_ || (sender_ == nullptr && receiver_ == nullptr)) return;
  // What the other link has still to hear may lie behind a message that nobody takes.
  failure_ = Error{ErrorCode::kCancelled,
                   fmt::format("a link that shared the connection to {} has ended", peer())};
}

Error LinkStream::not_ours(const std::string& what) const {
  return Error{ErrorCode::kProtocol, what + " does not belong here"}.within(peer());
}

Result<bool> LinkStream::read(ChannelCounters& counters) {
  if (failure_) return *failure_;
  reader_.begin();
  bool moved = false;
  while (true) {
    const bool may_guess = receiver_ != nullptr && !reader_.in_item();
    Result<StreamReader::Item> item =
        reader_.poll(*connection_, may_guess ? receiver_->guess() : std::span<std::byte>(),
                     receiver_ != nullptr ? &receiver_->message_counters() : nullptr, counters);
    if (!item.ok()) {
      Error error = std::move(item).error();
      return error.code == ErrorCode::kProtocol ? std::move(error).within(peer()) : error;
    }
    if (*item == StreamReader::Item::kNothing) return moved;
    RECUA_RETURN_IF_ERROR(take(*item));
    moved = true;
    if (*item == StreamReader::Item::kMessage) return true;
  }
}

Result<void> LinkStream::take(StreamReader::Item item) {
  switch (item) {
    case StreamReader::Item::kNothing:
      break;
    case StreamReader::Item::kHead: {
      RECUA_ASSIGN_OR_RETURN(const auto body, receiver_->begin_message(reader_.header()));
      reader_.begin_body(body, receiver_->message_counters());
      break;
    }
    case StreamReader::Item::kMessage:
      return receiver_->end_message(reader_.header());
    case StreamReader::Item::kCredit:
      if (sender_ == nullptr) return not_ours("a credit");
      return sender_->take_credit(reader_.n_released());
    case StreamReader::Item::kRecord: {
      const RecordKind kind = reader_.record();
      const bool is_senders = kind == RecordKind::kAnswer || kind == RecordKind::kFenced;
      StreamUser* const user = is_senders ? static_cast<StreamUser*>(sender_) : receiver_;
      if (user == nullptr) {
        return not_ours(fmt::format("link record of kind {}", static_cast<int>(kind)));
      }
      return user->take_record(kind, reader_.payload());
    }
  }
  return ok();
}

Result<bool> LinkStream::write(ChannelCounters& counters) {
  if (failure_) return *failure_;
  if (writer_.empty()) return false;
  return writer_.flush(*connection_, counters);
}

void LinkStream::arm(const net::ReadyCallback& ready) {
  if (!writer_.empty()) connection_->arm_write(ready);
  connection_->arm_read(on_readable_.through(ready));
}

bool LinkStream::arm_in(const net::WaitSet& set) {
  // Room on the connection is what a loop has to watch over.
  if (failure_ || !writer_.empty()) return false;
  if (!readable_) readable_.emplace(connection_->descriptor());
  return readable_->join(set);
}

void LinkStream::leave_set() {
  if (readable_ && sender_ == nullptr) readable_->leave();
}

bool LinkStream::take_readable() {
  const bool by_loop = on_readable_.take();
  const bool by_set = readable_ && readable_->take();
  return by_loop || by_set;
}

void LinkStream::close(const Error& why) {
  if (!failure_) failure_ = why;
  readable_.reset();
  connection_->close();
}

}  // namespace recua::rpc
