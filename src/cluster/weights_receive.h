#pragma once
/// WeightsReceiver: the worker's end of a channel for weights. Chunks arrive in its ring; each is
/// handed over on the channel's own loop, which checks and stores it, and its slot goes back.
///
/// Threads: made and used on the control loop; receiving happens on a loop of its own.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/offload.h"
#include "cluster/ring_buffer.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/link_metrics.h"

namespace recua::cluster {

class WeightsReceiver : public std::enable_shared_from_this<WeightsReceiver> {
 public:
  struct Parts {
    net::Env env;  // Of the control loop.
    Offload* offload = nullptr;
    const rpc::LinkPolicy* policy = nullptr;
    std::string name;  // Of the worker.
    rpc::ChannelId id;
    std::uint64_t chunk_bytes_max = 0;
    /// Stores the chunk of a request, on the channel's loop. The bytes may change under the hands
    /// of a hostile sender: copy first, check the copy. kProtocol ends the channel.
    std::function<Result<void>(std::uint64_t request, std::span<const std::byte> bytes)> take;
    /// What the link runs on, on the control loop.
    std::function<void(const rpc::LinkStats& link, const std::string& text)> reported;
  };

  /// kResourceExhausted: no memory for the ring.
  static Result<std::shared_ptr<WeightsReceiver>> create(Parts parts);
  WeightsReceiver(const WeightsReceiver&) = delete;
  WeightsReceiver& operator=(const WeightsReceiver&) = delete;
  ~WeightsReceiver();

  [[nodiscard]] const rpc::RingShape& ring() const { return shape_; }
  /// Takes the connection, and starts. kProtocol: there is one.
  Result<void> attach(std::unique_ptr<net::Connection> connection, const rpc::PeerInfo& peer);
  /// Whether chunks may come: attached, and not ended yet.
  [[nodiscard]] bool is_open() const { return loop_ != nullptr && !ended_.has_value(); }
  /// What take() said of a request's chunk, once it has come. Before: kUnavailable when the channel
  /// ended, kTimeout.
  boost::asio::awaitable<Result<void>> wait_for(std::uint64_t request, net::Duration timeout);
  /// Ends it, and returns when nothing calls take() any more.
  boost::asio::awaitable<void> close();
  /// Ends it soon.
  void stop();
  /// What the link did. After close(), if there was one.
  [[nodiscard]] const std::optional<rpc::LinkStats>& stats() const { return stats_; }

 private:
  class Pump;

  WeightsReceiver(Parts parts, std::unique_ptr<RingBuffer> ring);

  Parts parts_;
  rpc::RingShape shape_;
  std::map<std::uint64_t, Result<void>> taken_;  // By request, until wait_for() has told it.
  std::optional<Error> ended_;
  std::optional<rpc::LinkStats> stats_;
  net::Event changed_;
  // Members die from the bottom up: the pump with its channel, its loop, the ring they used.
  std::unique_ptr<RingBuffer> ring_;
  std::unique_ptr<StageLoop> loop_;
  std::shared_ptr<Pump> pump_;
};

}  // namespace recua::cluster
