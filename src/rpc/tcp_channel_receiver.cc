// The message that arrives is built up in its slot: n_filled_ bytes of it are there, n_wanted_ is
// its size once the header has been read. See tcp_channel.h for how one call usually reads all of
// it.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "rpc/tcp_channel.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {
namespace {

class TcpChannelReceiver : public ChannelReceiver {
 public:
  TcpChannelReceiver(std::unique_ptr<net::Connection> connection, ChannelId id, RingShape ring,
                     std::span<std::byte> memory)
      : connection_(std::move(connection)),
        id_(id),
        ring_(ring),
        memory_(memory),
        dropped_(ring.n_slots, false) {}

  [[nodiscard]] const std::string& peer() const override { return connection_->peer(); }
  [[nodiscard]] const RingShape& ring() const override { return ring_; }
  [[nodiscard]] std::string transport() const override { return "tcp"; }
  [[nodiscard]] const ChannelCounters& counters() const override { return counters_; }

  Result<std::optional<Incoming>> poll() override {
    if (failure_) return *failure_;
    while (true) {
      if (n_credit_left_ > 0) RECUA_RETURN_IF_ERROR(write_credit());
      RECUA_ASSIGN_OR_RETURN(const bool complete, fill());
      if (!complete) return std::optional<Incoming>();
      const std::uint32_t index = slot_index(n_received_);
      const TensorHeader header = *header_;
      RECUA_RETURN_IF_ERROR(begin_next(message_bytes(header)));
      if (header.epoch == id_.epoch) return std::optional<Incoming>(incoming(index, header));
      dropped_[index] = true;  // An older epoch: its slot comes back when its turn is there.
      pass_dropped();
      RECUA_RETURN_IF_ERROR(return_credits());
    }
  }

  Result<void> release(std::uint32_t slot) override {
    if (failure_) return *failure_;
    if (n_released_ == n_received_ || slot != slot_index(n_released_)) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("slot {} of the channel from {} is released out of turn", slot, peer())};
    }
    ++n_released_;
    pass_dropped();
    return return_credits();
  }

  void arm(net::ReadyCallback ready) override {
    ++counters_.sleeps;
    if (n_credit_left_ > 0) connection_->arm_write(ready);
    connection_->arm_read(std::move(ready));
  }

 private:
  [[nodiscard]] std::uint32_t slot_index(std::uint64_t message) const {
    return static_cast<std::uint32_t>(message % ring_.n_slots);
  }
  [[nodiscard]] std::span<std::byte> slot(std::uint64_t message) const {
    return memory_.subspan(slot_index(message) * static_cast<std::size_t>(ring_.slot_bytes),
                           static_cast<std::size_t>(ring_.slot_bytes));
  }
  /// Whether the sender may have begun message n_received_.
  [[nodiscard]] bool may_receive() const { return n_received_ < n_told_ + ring_.n_slots; }

  Error fail(Error error) {
    failure_ = error;
    connection_->close();
    return error;
  }

  [[nodiscard]] Incoming incoming(std::uint32_t index, const TensorHeader& header) const {
    const std::span<std::byte> body = slot(index).subspan(kTensorHeaderBytes);
    const std::size_t rows_bytes = static_cast<std::size_t>(header.n_rows) * header.row_bytes;
    return Incoming{.header = header,
                    .rows = body.first(rows_bytes),
                    .descriptor = body.subspan(rows_bytes, header.descriptor_bytes),
                    .slot = index};
  }

  /// Reads on. True when message n_received_ is complete.
  Result<bool> fill() {
    if (!may_receive()) return expect_nothing();
    const std::span<std::byte> target = slot(n_received_);
    while (true) {
      if (!header_ && n_filled_ >= kTensorHeaderBytes) RECUA_RETURN_IF_ERROR(take_header(target));
      if (header_ && n_filled_ >= message_bytes(*header_)) return true;
      // Without a header: as much as the last two messages both had, so that a stream of equal
      // messages needs one call each and nothing of the next one gets in.
      const std::size_t end =
          header_ ? static_cast<std::size_t>(message_bytes(*header_))
                  : std::max(std::min(last_bytes_, before_last_bytes_), kTensorHeaderBytes);
      ++counters_.system_calls;
      Result<std::size_t> n = connection_->try_read(target.subspan(n_filled_, end - n_filled_));
      if (!n.ok()) return fail(std::move(n).error());
      if (*n == 0) return false;
      n_filled_ += *n;
    }
  }

  /// The ring is full: whatever comes now was sent without a credit.
  Result<bool> expect_nothing() {
    std::array<std::byte, 1> byte;
    ++counters_.system_calls;
    Result<std::size_t> n = connection_->try_read(byte);
    if (!n.ok()) return fail(std::move(n).error());
    if (*n == 0) return false;
    return fail(Error{ErrorCode::kProtocol,
                      fmt::format("{} sent message {} without a credit: {} slots, {} released",
                                  peer(), n_received_, ring_.n_slots, n_told_)});
  }

  /// Copies the header out of the slot, then checks the copy.
  Result<void> take_header(std::span<const std::byte> target) {
    std::array<std::byte, kTensorHeaderBytes> bytes;
    std::memcpy(bytes.data(), target.data(), bytes.size());
    Result<TensorHeader> header = decode_tensor_header(bytes);
    if (!header.ok()) return fail(std::move(header).error().within(peer()));
    std::string wrong;
    if (header->session != id_.session) {
      wrong = fmt::format("session {:x}, the channel's is {:x}", header->session, id_.session);
    } else if (header->epoch > id_.epoch) {
      wrong = fmt::format("epoch {}, the channel's is {}", header->epoch, id_.epoch);
    } else if (header->sequence != n_received_) {
      wrong = fmt::format("sequence {}, expected {}", header->sequence, n_received_);
    } else if (message_bytes(*header) > ring_.slot_bytes) {
      wrong = fmt::format("{} bytes ({} rows of {}, descriptor of {}), a slot has {}",
                          message_bytes(*header), header->n_rows, header->row_bytes,
                          header->descriptor_bytes, ring_.slot_bytes);
    }
    if (!wrong.empty()) {
      return fail(Error{ErrorCode::kProtocol,
                        fmt::format("{} sent a tensor message of {}", peer(), wrong)});
    }
    header_ = *header;
    return ok();
  }

  /// Message n_received_ of this size is complete: turns to the next slot, with surplus bytes if
  /// any.
  Result<void> begin_next(std::uint64_t bytes) {
    const std::span<std::byte> done = slot(n_received_);
    const auto size = static_cast<std::size_t>(bytes);
    const std::size_t surplus = n_filled_ - size;
    ++n_received_;
    ++counters_.messages;
    counters_.bytes += bytes;
    before_last_bytes_ = std::exchange(last_bytes_, size);
    header_.reset();
    n_filled_ = surplus;
    // The sender waits now, and what is released may be all that will be until it goes on.
    if (n_received_ - n_told_ == ring_.n_slots) RECUA_RETURN_IF_ERROR(return_credits());
    if (surplus == 0) return ok();
    if (!may_receive()) {
      return fail(Error{ErrorCode::kProtocol,
                        fmt::format("{} sent message {} without a credit: {} slots, {} released",
                                    peer(), n_received_, ring_.n_slots, n_told_)});
    }
    std::memcpy(slot(n_received_).data(), done.data() + size, surplus);
    ++counters_.payload_copies;
    return ok();
  }

  /// Slots of dropped messages come back as soon as those before them have.
  void pass_dropped() {
    while (n_released_ < n_received_ && dropped_[slot_index(n_released_)]) {
      dropped_[slot_index(n_released_)] = false;
      ++n_released_;
    }
  }

  /// Tells what was released once the sender may have spent half its ring. (n_received_ - n_told_
  /// is what it has spent as far as we know; when it waits, that is all of it, so it is always
  /// told.)
  Result<void> return_credits() {
    if (n_released_ == n_told_ || 2 * (n_received_ - n_told_) < ring_.n_slots) return ok();
    if (n_credit_left_ > 0) return ok();  // The next one goes out when this one has.
    credit_ = encode_credit(n_released_);
    n_credit_left_ = credit_.size();
    n_telling_ = n_released_;
    return write_credit();
  }

  Result<void> write_credit() {
    const std::array<std::span<const std::byte>, 1> parts{std::span(credit_).last(n_credit_left_)};
    ++counters_.system_calls;
    Result<std::size_t> n = connection_->try_write(parts);
    if (!n.ok()) return fail(std::move(n).error());
    n_credit_left_ -= *n;
    if (n_credit_left_ > 0) return ok();
    n_told_ = n_telling_;
    return return_credits();
  }

  std::unique_ptr<net::Connection> connection_;
  ChannelId id_;
  RingShape ring_;
  std::span<std::byte> memory_;
  std::vector<bool> dropped_;  // Per slot.

  std::uint64_t n_received_ = 0;
  std::uint64_t n_released_ = 0;
  std::uint64_t n_told_ = 0;  // Released, and the sender knows.
  std::size_t n_filled_ = 0;
  std::optional<TensorHeader> header_;  // Of the message that arrives.
  std::size_t last_bytes_ = 0;
  std::size_t before_last_bytes_ = 0;

  std::array<std::byte, kCreditBytes> credit_{};
  std::size_t n_credit_left_ = 0;
  std::uint64_t n_telling_ = 0;  // In credit_.
  ChannelCounters counters_;
  std::optional<Error> failure_;
};

}  // namespace

Result<std::unique_ptr<ChannelReceiver>> make_tcp_receiver(
    std::unique_ptr<net::Connection> connection, ChannelId id, RingShape ring,
    std::span<std::byte> memory) {
  const bool shape_ok = ring.n_slots > 0 && ring.slot_bytes >= kTensorHeaderBytes;
  if (!shape_ok || memory.size() / ring.n_slots < ring.slot_bytes) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} bytes are no ring of {} slots of {} (at least {} each)",
                             memory.size(), ring.n_slots, ring.slot_bytes, kTensorHeaderBytes)};
  }
  return std::unique_ptr<ChannelReceiver>(
      std::make_unique<TcpChannelReceiver>(std::move(connection), id, ring, memory));
}

}  // namespace recua::rpc
