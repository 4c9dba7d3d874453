// Where messages lie and which of them are whole says a LinkWindow; here is how they come: by the
// connection or by a fast path, and how the two ends agree on one. A header that came by a fast
// path is copied out of its slot and checked there; so is the descriptor, since a broken peer could
// change it later. Of rows that came alone both follow from the message before.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/bytes.h"
#include "rpc/background_end.h"
#include "rpc/delayed_receiver.h"
#include "rpc/link.h"
#include "rpc/link_negotiation.h"
#include "rpc/link_stream.h"
#include "rpc/link_window.h"
#include "rpc/rows_alone.h"
#include "rpc/tensor_header.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

/// While a fast path works, the connection is silent: a look costs a system call.
constexpr std::uint32_t kPollsPerStreamRead = 64;

class LinkReceiver final : public ChannelReceiver, private StreamReceiver {
 public:
  LinkReceiver(LinkContext context, std::shared_ptr<LinkStream> stream, ChannelId id,
               RingShape ring, RingMemory memory)
      : context_(std::move(context)),
        stream_(std::move(stream)),
        ring_(ring),
        memory_(memory),
        window_(id, ring, memory.bytes) {
    stream_->join(*this);
  }
  ~LinkReceiver() override { stream_->leave(*this); }

  [[nodiscard]] const std::string& peer() const override { return stream_->peer(); }
  [[nodiscard]] const RingShape& ring() const override { return ring_; }
  [[nodiscard]] std::string transport() const override {
    if (failure_) return carried_;
    if (path_ != nullptr) return path_->description();
    return connection_transport(why_stream_);
  }
  [[nodiscard]] const ChannelCounters& counters() const override {
    shown_ = counters_;
    if (path_ != nullptr) path_->add_to(shown_);
    return shown_;
  }

  [[nodiscard]] bool is_quiet() const override {
    return path_ != nullptr && path_ready_ && path_->is_quiet() && !window_.has_next();
  }
  Result<const Incoming*> poll() override {
    if (failure_) return *failure_;
    if (stream_->writes()) RECUA_RETURN_IF_ERROR(flush());
    for (bool again = true; again;) {
      again = false;
      if (stream_is_due()) {
        const std::uint64_t n_before = counters_.messages;
        RECUA_RETURN_IF_ERROR(read_stream());
        again = counters_.messages != n_before;
      }
      if (path_ != nullptr) RECUA_RETURN_IF_ERROR(read_path());
      if (const Incoming* const message = window_.take()) return message;
    }
    RECUA_RETURN_IF_ERROR(return_credits());
    return nullptr;
  }

  Result<void> release(std::uint32_t slot) override {
    if (failure_) return *failure_;
    if (!window_.release(slot)) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("slot {} of the channel from {} is released out of turn", slot, peer())};
    }
    // Telling costs as much as sending an answer, which is due now: unless the sender waits for it,
    // it is done by the next poll() that finds nothing.
    return starving_ || window_.n_left() == 0 ? return_credits() : ok();
  }

  void arm(net::ReadyCallback ready) override {
    ++counters_.sleeps;
    stream_->arm(ready);
    if (path_ != nullptr) path_->arm(context_.env.executor, ready);
  }

  bool arm_in(const net::WaitSet& set) override {
    if (failure_ || !stream_->arm_in(set)) return false;
    if (path_ != nullptr && !path_->arm_in(set)) return false;
    ++counters_.sleeps;
    return true;
  }
  void leave_set() override {
    stream_->leave_set();
    if (path_ != nullptr) path_->leave_set();
  }

 private:
  [[nodiscard]] bool stream_is_due() {
    return path_ == nullptr || !path_ready_ || stream_->in_item() || stream_->take_readable() ||
           ++n_polls_ % kPollsPerStreamRead == 0;
  }

  Error fail(Error error) {
    if (!failure_ && carried_.empty()) carried_ = transport();
    failure_ = error;
    drop_path();
    stream_->close(error);
    return error;
  }
  Error broken(const std::string& what) {
    return fail(Error{ErrorCode::kProtocol, fmt::format("{} {}", peer(), what)});
  }
  Error broken(const Error& error) { return broken(error.message); }
  void drop_path() {
    if (path_ == nullptr) return;
    path_->add_to(counters_);
    if (path_->give_up_waits()) ends_.take(std::move(path_));
    path_.reset();
  }
  void report(const std::string& what) const {
    report_link(context_, context_.other.empty() ? peer() : context_.other, context_.self, what);
  }

  Result<void> check_header(const TensorHeader& header, std::uint64_t expected) {
    const Result<void> checked = window_.check(header, expected);
    return checked.ok() ? ok() : Result<void>(broken(checked.error()));
  }

  /// Message is complete in its slot, its header checked.
  Result<void> complete(const TensorHeader& header) {
    window_.complete(header);
    ++counters_.messages;
    counters_.bytes += message_bytes(header);
    // The sender waits now, and what is released may be all that will be until it goes on.
    return window_.n_left() == 0 ? return_credits() : ok();
  }

  // ---- By the connection ------------------------------------------------------------------------

  Result<void> read_stream() {
    Result<bool> read = stream_->read(counters_);
    return read.ok() ? ok() : Result<void>(fail(std::move(read).error()));
  }

  std::span<std::byte> guess() override {
    const std::uint64_t next = window_.first_missing();
    if (path_ != nullptr || !window_.holds(next)) return {};
    const std::uint64_t likely = std::min(last_body_, before_last_body_);
    const std::span<std::byte> slot = window_.slot_bytes(next);
    return slot.first(std::min<std::size_t>(slot.size(), kTensorHeaderBytes + likely));
  }

  Result<std::span<std::byte>> begin_message(const TensorHeader& header) override {
    const std::uint64_t expected = window_.first_missing();
    // Beside a fast path, any message that has not come yet may come here.
    const bool plausible = path_ != nullptr && window_.is_empty(header.sequence);
    if (!plausible && !window_.holds(expected)) {
      return broken(fmt::format("sent message {} without a credit: {} slots, {} released", expected,
                                ring_.n_slots, expected - ring_.n_slots));
    }
    RECUA_RETURN_IF_ERROR(check_header(header, plausible ? header.sequence : expected));
    return window_.begin_by_stream(header);
  }

  ChannelCounters& message_counters() override { return counters_; }

  Result<void> end_message(const TensorHeader& header) override {
    before_last_body_ = std::exchange(last_body_, padded_bytes(header) - kTensorHeaderBytes);
    // The path does not see that this one took the last credit.
    starving_ = starving_ || path_ != nullptr || header.starving;
    return complete(header);
  }

  Result<void> take_record(RecordKind kind, std::span<const std::byte> payload) override {
    Result<void> taken = act_on(kind, payload);
    if (failure_) return *failure_;
    if (!taken.ok()) return fail(std::move(taken).error().within(peer()));
    return ok();
  }

  Result<void> act_on(RecordKind kind, std::span<const std::byte> payload) {
    switch (kind) {
      case RecordKind::kOffer: {
        wire::LinkOffer offer;
        RECUA_RETURN_IF_ERROR(parse_record(payload, peer(), offer));
        return take_offer(offer);
      }
      case RecordKind::kReady: {
        wire::LinkReady ready;
        RECUA_RETURN_IF_ERROR(parse_record(payload, peer(), ready));
        return take_ready(ready);
      }
      case RecordKind::kFence: {
        wire::LinkFence fence;
        RECUA_RETURN_IF_ERROR(parse_record(payload, peer(), fence));
        return take_fence(fence);
      }
      case RecordKind::kAnswer:
      case RecordKind::kFenced:
        break;
    }
    return Error{ErrorCode::kProtocol, fmt::format("link record of kind {} does not belong here",
                                                   static_cast<int>(kind))};
  }

  // ---- By a fast path ---------------------------------------------------------------------------

  Result<void> read_path() {
    arrivals_.clear();
    const Result<bool> polled = path_->poll(window_.n_delivered(), arrivals_);
    if (!polled.ok()) return fail(Error(polled.error()).within(peer()));
    for (const Arrival& arrival : arrivals_) {
      window_.prefetch(arrival.sequence, descriptor_at_);
    }
    RECUA_RETURN_IF_ERROR(take_arrivals());
    if (path_ == nullptr) return ok();
    const LaneMask failed = path_->failed_lanes();
    if (failed == 0) return ok();
    const std::string reason = path_->failure();
    return fence(failed, reason);
  }

  Result<void> take_arrivals() {
    for (const Arrival& arrival : arrivals_) {
      const Result<bool> whole = window_.add_piece(arrival);
      if (!whole.ok()) return broken(whole.error());
      starving_ = starving_ || arrival.starving;
      if (*whole) RECUA_RETURN_IF_ERROR(complete_fast(arrival.sequence, arrival));
    }
    return ok();
  }

  Result<void> complete_fast(std::uint64_t message, const Arrival& arrival) {
    if (arrival.rows_alone) return complete_rows_alone(message, arrival);
    std::array<std::byte, kTensorHeaderBytes> head;
    const std::span<std::byte> bytes = window_.slot_bytes(message);
    std::memcpy(head.data(), bytes.data(), head.size());
    Result<TensorHeader> header = decode_tensor_header(head);
    if (!header.ok()) return fail(std::move(header).error().within(peer()));
    RECUA_RETURN_IF_ERROR(check_header(*header, message));
    if (header->padding_bytes != 0) {
      return broken(
          fmt::format("announced padding of {} bytes for message {}, which did not come "
                      "by the connection",
                      header->padding_bytes, message));
    }
    const std::uint64_t size = message_bytes(*header);
    RECUA_RETURN_IF_ERROR(check_written(message, arrival, size));
    descriptor_at_ = static_cast<std::size_t>(size) - header->descriptor_bytes;
    starving_ = starving_ || header->starving;
    const std::span<const std::byte> in_slot =
        bytes.subspan(descriptor_at_, header->descriptor_bytes);
    std::vector<std::byte>& descriptor = window_.own_descriptor(message);
    descriptor.assign(in_slot.begin(), in_slot.end());
    last_by_path_.set(*header, descriptor);
    return complete(*header);
  }

  /// Its rows are there, the rest is that of the message before, which came by the same lane.
  Result<void> complete_rows_alone(std::uint64_t message, const Arrival& arrival) {
    const std::optional<TensorHeader> header = last_by_path_.advance(message);
    if (!header) {
      return broken(
          fmt::format("announced rows alone for message {}, but the one before it did "
                      "not come right before it by the same lane",
                      message));
    }
    const std::uint64_t bytes = std::uint64_t{header->n_rows} * header->row_bytes;
    RECUA_RETURN_IF_ERROR(check_written(message, arrival, bytes));
    window_.own_descriptor(message) = last_by_path_.descriptor();
    return complete(*header);
  }

  Result<void> check_written(std::uint64_t message, const Arrival& arrival, std::uint64_t due) {
    if (!arrival.bytes || arrival.n_pieces != 1 || *arrival.bytes == due || due > uncut_bytes_) {
      return ok();
    }
    return broken(fmt::format("wrote {} bytes for message {}, whose header says {}", *arrival.bytes,
                              message, due));
  }

  Result<void> take_offer(const wire::LinkOffer& offer) {
    if (offer.generation() <= generation_) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("offer {} came after offer {}", offer.generation(), generation_)};
    }
    if (path_ != nullptr) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("offer {} came while the path of offer {} was open",
                               offer.generation(), generation_)};
    }
    generation_ = offer.generation();
    uncut_bytes_ = offer.uncut_bytes();
    wire::LinkAnswer none;
    none.set_generation(generation_);
    if (context_.policy == nullptr) {
      none.set_reason("uses its connection only");
      stream_->writer().push_record(encode_record(RecordKind::kAnswer, none));
      return flush();
    }
    RECUA_ASSIGN_OR_RETURN(LinkChoice choice,
                           choose_path(context_, ring_, memory_, stream_->local_address(), offer));
    path_ = std::move(choice.path);
    path_ready_ = false;
    last_by_path_.begin(choice.answer.takes_rows_alone());
    stream_->writer().push_record(encode_record(RecordKind::kAnswer, choice.answer));
    if (path_ == nullptr && why_stream_ != choice.why) {
      why_stream_ = choice.why;
      report(fmt::format("tcp, because {}", why_stream_));
    }
    return flush();
  }

  Result<void> take_ready(const wire::LinkReady& ready) {
    if (ready.generation() != generation_) {
      return Error{ErrorCode::kProtocol, fmt::format("ready for offer {}, the latest is {}",
                                                     ready.generation(), generation_)};
    }
    if (ready.error().empty()) {
      if (path_ != nullptr) {
        path_ready_ = true;
        starving_ = true;  // What was released meanwhile is told now.
        why_stream_.clear();
        const std::string description = path_->description();
        if (std::exchange(planned_from_, {}) != description) report(description);
      }
      return return_credits();
    }
    drop_path();
    why_stream_ = "the peer " + wire_text(ready.error(), kReasonBytesMax);
    report(fmt::format("tcp, because {}", why_stream_));
    return ok();
  }

  Result<void> take_fence(const wire::LinkFence& record) {
    if (record.generation() != generation_) {
      return Error{ErrorCode::kProtocol, fmt::format("fence for offer {}, the latest is {}",
                                                     record.generation(), generation_)};
    }
    fence_reason_ = "the peer reports: " + wire_text(record.reason(), kReasonBytesMax);
    return fence(record.lanes(), {}, record.planned());
  }

  /// Ends lanes and tells what has arrived. reason: set when we noticed ourselves.
  Result<void> fence(LaneMask lanes, const std::string& reason, bool planned = false) {
    if (path_ != nullptr && (path_->lanes() & lanes) != 0) {
      const std::string before = path_->description();
      if (!planned) ++counters_.failovers;
      arrivals_.clear();
      carried_ = before;  // Without lanes a path has no name.
      Result<void> fenced = path_->fence(lanes, window_.n_delivered(), arrivals_);
      if (!fenced.ok()) return fail(std::move(fenced).error().within(peer()));
      RECUA_RETURN_IF_ERROR(take_arrivals());
      carried_.clear();
      if (path_->lanes() == 0) drop_path();
      const std::string why = reason.empty() ? fence_reason_ : reason;
      if (path_ == nullptr && !planned) why_stream_ = why;
      if (planned) {
        planned_from_ = before;
      } else {
        report(fmt::format("{} failed: {}; going on over {}", before, why,
                           path_ != nullptr ? path_->description() : "tcp"));
      }
    }
    wire::LinkFenced record;
    record.set_generation(generation_);
    record.set_lanes(lanes);
    record.set_reason(wire_text(reason, kReasonBytesMax));
    window_.tell(record);
    stream_->writer().push_record(encode_record(RecordKind::kFenced, record));
    return flush();
  }

  // ---- Credits ----------------------------------------------------------------------------------

  /// Tells what was released once the sender may have a quarter of its ring left, or said that it
  /// waits. (When it waits it has spent all that we know of, so it is always told.)
  Result<void> return_credits() {
    if (!window_.has_untold()) return ok();
    if (path_ != nullptr && !path_ready_) return ok();  // The sender's end is not connected yet.
    if (!starving_ && window_.n_left() > std::max<std::uint32_t>(1, ring_.n_slots / 4)) return ok();
    if (path_ != nullptr) {
      path_->tell_released(window_.tell(), starving_);
      starving_ = false;
      return ok();
    }
    const bool waits = stream_->writes();  // Then polls try to write, ours and the sender's.
    stream_->writer().push_credit(encode_credit(window_.tell()));
    starving_ = false;
    return waits ? ok() : flush();
  }

  Result<void> flush() {
    Result<bool> wrote = stream_->write(counters_);
    if (!wrote.ok()) return fail(std::move(wrote).error());
    return !stream_->writes() && *wrote ? return_credits() : ok();
  }

  LinkContext context_;
  std::shared_ptr<LinkStream> stream_;
  RingShape ring_;
  RingMemory memory_;
  LinkWindow window_;
  bool starving_ = false;  // The sender waits for a credit and may sleep.

  std::uint64_t last_body_ = 0;
  std::uint64_t before_last_body_ = 0;
  std::uint32_t n_polls_ = 0;

  std::uint32_t generation_ = 0;
  std::unique_ptr<FastReceiver> path_;
  bool path_ready_ = false;  // The sender said so: it may be written to.
  LastReceived last_by_path_;
  std::vector<Arrival> arrivals_;
  std::size_t descriptor_at_ = 0;  // Of the last message by a fast path, in its slot.
  std::uint64_t uncut_bytes_ = 0;
  std::string why_stream_;
  std::string fence_reason_;
  std::string planned_from_;  // What the sender gave up although it worked.

  ChannelCounters counters_;
  mutable ChannelCounters shown_;
  std::optional<Error> failure_;
  std::string carried_;  // What transport() was when the channel broke.
  BackgroundEnd ends_;   // Of paths; before all that they refer to.
};

}  // namespace

Result<std::unique_ptr<ChannelReceiver>> make_link_receiver(LinkContext context,
                                                            std::shared_ptr<LinkStream> stream,
                                                            ChannelId id, RingShape ring,
                                                            RingMemory memory) {
  const bool shape_ok = ring.n_slots > 0 && ring.slot_bytes >= kTensorHeaderBytes;
  if (!shape_ok || memory.bytes.size() / ring.n_slots < ring.slot_bytes) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("{} bytes are no ring of {} slots of {} (at least {} each)",
                    memory.bytes.size(), ring.n_slots, ring.slot_bytes, kTensorHeaderBytes)};
  }
  const net::Env env = context.env;
  const net::Duration delay = context.policy ? context.policy->delay : net::Duration::zero();
  std::unique_ptr<ChannelReceiver> out =
      std::make_unique<LinkReceiver>(std::move(context), std::move(stream), id, ring, memory);
  if (delay > net::Duration::zero()) out = make_delayed_receiver(std::move(out), env, delay);
  return out;
}

}  // namespace recua::rpc
