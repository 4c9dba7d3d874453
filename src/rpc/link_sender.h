#pragma once
/// The sending end of a link, in one of five states: it has not begun, it has offered and waits for
/// the answer, its lanes are being connected, it uses a fast path, or it writes to the connection.
/// Messages wait in outbox_ until they are complete. Private to link_sender.cc (what moves) and
/// link_sender_paths.cc (over what). Threads: as ChannelSender's.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rpc/background_end.h"
#include "rpc/link.h"
#include "rpc/link_negotiation.h"
#include "rpc/link_outbox.h"
#include "rpc/link_stream.h"

namespace recua::rpc {

class LinkSender final : public ChannelSender, private StreamSender {
 public:
  LinkSender(LinkContext context, std::shared_ptr<LinkStream> stream, RingShape ring,
             std::vector<std::span<std::byte>> sources, std::string no_links, bool pads);
  ~LinkSender() override { stream_->leave(*this); }

  [[nodiscard]] const std::string& peer() const override { return stream_->peer(); }
  [[nodiscard]] const RingShape& ring() const override { return ring_; }
  [[nodiscard]] std::string transport() const override {
    if (failure_) return carried_;
    if (path_ != nullptr) return path_->description();
    return connection_transport(why_stream_);
  }
  [[nodiscard]] bool settled() const override {
    return state_ == State::kFast || state_ == State::kStream;
  }
  [[nodiscard]] std::uint32_t credits() const override { return settled() ? outbox_.n_free() : 0; }
  [[nodiscard]] std::uint64_t n_sent() const override { return outbox_.n_sent(); }
  [[nodiscard]] std::uint64_t n_completed() const override { return outbox_.n_completed(); }
  [[nodiscard]] bool flushed() const override {
    return outbox_.all_handed_over() && !stream_->writes() && settled() &&
           (path_ == nullptr || path_->flushed());
  }
  [[nodiscard]] bool completes_at_once() const override {
    return path_ == nullptr || path_->completes_at_once();
  }
  [[nodiscard]] const ChannelCounters& counters() const override;
  Result<bool> try_send(const Outgoing& message) override;

  void wake() override {
    if (path_ != nullptr) path_->wake();
  }

  Result<bool> poll() override;

  void arm(net::ReadyCallback ready, bool for_completions) override;

  bool arm_in(const net::WaitSet& set, bool for_completions) override;

 private:
  enum class State { kStart, kOffered, kConnecting, kFast, kStream };
  [[nodiscard]] net::TimePoint now() const { return context_.env.clock->now(); }
  [[nodiscard]] bool stream_is_due();

  Error fail(Error error);
  void drop_path();
  void report(const std::string& what) const;

  /// A message that is lost completes with an error, which nobody hears of who does not wait for
  /// completions: look after a while. True: messages are overdue, so wait for them after all.
  bool watch(const net::ReadyCallback& ready);

  // ---- Moving messages ------------------------------------------------------------------------

  /// Hands waiting messages to whatever carries them now.
  Result<void> dispatch();
  Result<bool> write();
  Result<void> take_released(std::uint64_t n_released, std::string_view how);

  // ---- What the receiver says on the connection -------------------------------------------------

  Result<bool> read_stream();
  Result<void> take_credit(std::uint64_t n_released) override;

  /// What follows from a record goes out at once: the other link of the connection may have read it
  /// after this one's last poll().
  Result<void> take_record(RecordKind kind, std::span<const std::byte> payload) override;

  /// The connection's other link may have read it, long before the next poll().
  void note_news();
  Result<void> act_on(RecordKind kind, std::span<const std::byte> payload);

  // ---- Agreeing on a path -----------------------------------------------------------------------

  void offer();
  void settle_on_stream(const std::string& why, bool temporary);
  void plan_retry(bool temporary);
  /// RDMA may be back, or a port of it. Messages under way are no hindrance: those on the
  /// connection arrive before the offer, those on lanes are sorted out by the fence. With a
  /// retry_at_ only.
  void consider_retry();

  Result<void> take_answer(const wire::LinkAnswer& answer);
  void say_ready(const std::string& error);
  void use_path();
  void give_up_connecting(const std::string& why);
  /// Lanes that rdma_cm connects are not there at once.
  void watch_connecting();

  // ---- When lanes fail --------------------------------------------------------------------------

  void fence_failed_lanes();
  void fence(LaneMask lanes, const std::string& reason, bool planned = false);
  Result<void> check_deadline();
  Result<void> take_fenced(const wire::LinkFenced& fenced);

  LinkContext context_;
  std::shared_ptr<LinkStream> stream_;
  RingShape ring_;
  std::vector<std::span<std::byte>> sources_;
  State state_;
  std::string why_stream_;

  LinkOutbox outbox_;
  std::uint64_t n_told_ = 0;  // By the last credit.
  bool has_news_ = false;     // The receiver has said something since the last poll().
  std::uint32_t n_polls_ = 0;

  std::uint32_t generation_ = 0;
  std::optional<LinkProposal> proposal_;
  std::unique_ptr<FastSender> path_;
  LaneMask fencing_ = 0;  // Lanes whose end the receiver has not confirmed yet.
  std::string fence_reason_;
  std::string planned_from_;  // What is being replaced though it works, for ports that are back.
  bool shared_memory_failed_ = false;
  bool gave_up_waiting_ = false;
  std::optional<net::TimePoint> deadline_;  // Of the answer, or of the confirmation.
  std::optional<net::TimePoint> retry_at_;
  net::Duration retry_delay_{};
  net::TimePoint path_since_{};
  std::unique_ptr<net::Timer> timer_;
  std::unique_ptr<net::Timer> watch_timer_;
  std::shared_ptr<bool> watch_is_over_ = std::make_shared<bool>(false);
  std::uint64_t n_watched_ = 0;  // What watch_timer_ was started for: messages before this one.

  ChannelCounters counters_;
  mutable ChannelCounters shown_;
  std::optional<Error> failure_;
  std::string carried_;  // What transport() was when the channel broke.
  BackgroundEnd ends_;   // Of paths; before all that they refer to.
};

}  // namespace recua::rpc
