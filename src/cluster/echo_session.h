#pragma once
/// EchoSession: a worker's end when a link to it is measured (`recua net test`). It sends back what
/// it gets, over the same kind of links as a slice's. docs/protocol.md, "Measuring a link".
///
/// Life: create() -> both channels arrive by attach() -> start() -> messages
/// are answered on a loop of its own -> close(). Made and driven on the worker's control loop.
/// A message's micro_batch says what is wanted: its rows back (kEchoRows), sent from the slot in
/// which they lie, or an empty answer (kEchoAcknowledge). Bounds: kEchoSlotBytesMax,
/// kEchoSlotsMax, and what the worker has free.

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/channel_host.h"
#include "cluster/offload.h"
#include "cluster/ring_buffer.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/channel.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

inline constexpr std::uint64_t kEchoSlotBytesMax = std::uint64_t{8} << 20;
inline constexpr std::uint32_t kEchoSlotsMax = 64;
/// Of one worker, open at once.
inline constexpr std::size_t kEchoSessionsMax = 8;

/// LinkPolicy::no_rdma_reason of links that may use RDMA, but not in this measurement.
inline constexpr const char* kNoRdmaAsked = "is asked to use no RDMA in this measurement";

/// TensorHeader::micro_batch of a message to an echo session.
inline constexpr std::uint32_t kEchoRows = 0;
inline constexpr std::uint32_t kEchoAcknowledge = 1;

/// Messages from one channel, answered on another. A polled state machine. Threads: one.
class Echo {
 public:
  Echo(rpc::ChannelId id, std::unique_ptr<rpc::ChannelReceiver> in,
       std::unique_ptr<rpc::ChannelSender> out)
      : id_(id), in_(std::move(in)), out_(std::move(out)) {}

  /// True when something moved. An error ends it: a channel broke, or the peer broke the rules.
  Result<bool> poll();
  /// Polls until an error, which it returns, or a requested stop; then closes its channels. Once.
  boost::asio::awaitable<Result<void>> drive(net::Env env);
  void request_stop() { stop_requested_ = true; }  // From any thread.
  void wake();                                     // From the loop of drive().

 private:
  /// A slot whose bytes may still be read by the answer that is under way.
  struct Held {
    std::uint32_t slot = 0;
    std::uint64_t n_completed = 0;  // Free once the sender says so many.
  };
  Result<void> answer(const rpc::Incoming& incoming);

  rpc::ChannelId id_;
  std::unique_ptr<rpc::ChannelReceiver> in_;
  std::unique_ptr<rpc::ChannelSender> out_;
  const rpc::Incoming* incoming_ = nullptr;
  std::deque<Held> held_;  // At most the ring's slots.
  std::atomic<bool> stop_requested_ = false;
  std::shared_ptr<net::Event> wake_;
};

class EchoSession final : public ChannelHost, public std::enable_shared_from_this<EchoSession> {
 public:
  struct Request {
    rpc::ChannelId id;
    rpc::Secret secret{};
    rpc::RingShape ring;
    bool rdma = false;
    bool shared_memory = false;

    [[nodiscard]] std::uint64_t ring_bytes() const { return ring.n_slots * ring.slot_bytes; }
  };
  /// Checks an OpenEcho message. kInvalidArgument, kProtocol: names the field and its bound.
  static Result<Request> parse(const wire::OpenEcho& message);

  /// policy: what the worker's links may use (null: TCP); the session's use no more than was asked
  /// for.
  /// kResourceExhausted: no memory for the ring.
  static Result<std::shared_ptr<EchoSession>> create(net::Env env, Offload& offload,
                                                     std::string name, const Request& request,
                                                     const rpc::LinkPolicy* policy);

  [[nodiscard]] rpc::ChannelId id() const override { return request_.id; }
  [[nodiscard]] const rpc::Secret& secret() const override { return request_.secret; }
  [[nodiscard]] Result<rpc::RingShape> ring(const rpc::ChannelRequest& request) const override;
  Result<void> attach(std::unique_ptr<net::Connection> connection,
                      const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) override;
  [[nodiscard]] std::uint64_t memory_bytes() const override { return request_.ring_bytes(); }
  [[nodiscard]] bool loaded() const override { return true; }

  /// Starts to answer. failed is called on the control loop if it ends by itself.
  Result<void> start(std::function<void(const Error&)> failed);
  /// Ends whatever runs. Idempotent.
  void close();

 private:
  EchoSession(net::Env env, Offload& offload, std::string name, const Request& request)
      : env_(std::move(env)), offload_(&offload), name_(std::move(name)), request_(request) {}

  net::Env env_;
  Offload* offload_;
  std::string name_;
  Request request_;
  rpc::LinkPolicy policy_;

  // Members die from the bottom up: the links before their loop, the ring after both.
  std::unique_ptr<RingBuffer> ring_;
  rpc::RingShape out_ring_;
  rpc::PeerInfo peer_;  // As both channels' handshakes told.
  std::unique_ptr<net::Connection> in_;
  std::unique_ptr<net::Connection> out_;
  std::unique_ptr<StageLoop> loop_;
  std::shared_ptr<Echo> echo_;  // Shared with a pending stop on its loop only.
  bool closed_ = false;
};

}  // namespace recua::cluster
