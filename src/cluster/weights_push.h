#pragma once
/// WeightsPusher: the coordinator's end of a channel for weights. It copies chunks out of the
/// mapped file into a few staging buffers, which the link may register, and sends them as far as
/// the worker's slots go. The file's mapping itself is never registered: that would pin it, and
/// turn it into private memory.
///
/// Threads: made and used on the control loop; copying and sending happen on a loop of its own.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/offload.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/link.h"
#include "rpc/link_metrics.h"

namespace recua::cluster {

class WeightsPusher : public std::enable_shared_from_this<WeightsPusher> {
 public:
  struct Parts {
    rpc::LinkContext context;  // Its env is the control loop's; report is called on that loop.
    rpc::ChannelId id;
    std::unique_ptr<net::Connection> connection;  // Its channel handshake is done.
    rpc::RingShape ring;                          // The worker's.
    std::vector<std::uint32_t> features;          // Agreed on.
    /// Called once, on the control loop, when the channel has ended: what it did.
    std::function<void(const rpc::LinkStats&)> ended;
  };

  /// kResourceExhausted: no memory for staging. kProtocol: a ring that no chunk fits.
  static Result<std::shared_ptr<WeightsPusher>> start(Offload& offload, Parts parts);
  WeightsPusher(const WeightsPusher&) = delete;
  WeightsPusher& operator=(const WeightsPusher&) = delete;
  ~WeightsPusher();

  /// Returns when the chunk is on its way. bytes stay readable until then. kUnavailable: the
  /// channel has ended. kInvalidArgument: larger than a slot.
  boost::asio::awaitable<Result<void>> push(std::uint64_t request,
                                            std::span<const std::byte> bytes);
  /// Ends it. Idempotent.
  void close();

 private:
  class Pump;

  WeightsPusher() = default;

  // Members die from the bottom up: what the pump uses after it.
  net::Env env_;
  std::unique_ptr<StageLoop> loop_;
  std::shared_ptr<Pump> pump_;
};

}  // namespace recua::cluster
