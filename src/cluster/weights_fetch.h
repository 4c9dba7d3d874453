#pragma once
/// WeightsFetcher: gets the chunks that a slice lacks from the coordinator, by a channel if it
/// pushes them there, else one by one over the control connection. When the channel breaks, the
/// rest comes over the control connection. Every byte is checked by hash before it counts.
///
/// Threads: the control loop; hashing and disk through the Offload, or on the channel's loop.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/offload.h"
#include "cluster/slice_weights.h"
#include "cluster/weights_receive.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/link_metrics.h"

namespace recua::cluster {

/// How to ask the coordinator.
struct ChunkSource {
  /// For a chunk's bytes.
  std::function<boost::asio::awaitable<Result<std::string>>(ChunkRef, Digest)> fetch;
  /// For a channel to push chunks on; it was attached when this returns. Empty: it cannot.
  std::function<boost::asio::awaitable<Result<void>>()> open_channel;
  /// For a chunk on that channel, as this request.
  std::function<boost::asio::awaitable<Result<void>>(ChunkRef, Digest, std::uint64_t request)> push;
};

using LoadProgress =
    std::function<void(std::uint64_t done, std::uint64_t total, std::uint64_t fetched)>;

class WeightsFetcher : public std::enable_shared_from_this<WeightsFetcher> {
 public:
  struct Parts {
    net::Env env;
    Offload* offload = nullptr;
    const rpc::LinkPolicy* policy = nullptr;
    std::string name;  // Of the worker.
    rpc::ChannelId id;
    std::shared_ptr<SliceWeights> weights;
    ChunkSource source;
    LoadProgress progress;
    std::uint64_t total_bytes = 0;  // Of the whole slice.
    /// What the channel runs on.
    std::function<void(const rpc::LinkStats& link, const std::string& text)> reported;
  };

  explicit WeightsFetcher(Parts parts);

  /// Supplies all that is missing. kCorrupt: a chunk has another hash. kCancelled: after stop().
  boost::asio::awaitable<Result<void>> run();
  /// Makes run() end soon.
  void stop();

  /// The channel's ring, and its connection. kNotFound, kProtocol: none is waited for.
  [[nodiscard]] Result<rpc::RingShape> ring() const;
  Result<void> attach(std::unique_ptr<net::Connection> connection, const rpc::PeerInfo& peer);
  /// What the channel did, if there was one. After run().
  [[nodiscard]] const std::optional<rpc::LinkStats>& link() const { return link_; }

 private:
  struct Store;

  boost::asio::awaitable<void> open_channel();
  boost::asio::awaitable<void> fetch_some();
  /// Nothing: it did not come by the channel.
  boost::asio::awaitable<std::optional<Result<void>>> by_channel(std::size_t index);
  boost::asio::awaitable<Result<void>> by_control(std::size_t index);

  Parts parts_;
  std::shared_ptr<Store> store_;  // Shared with the channel's loop.
  std::uint64_t local_bytes_ = 0;
  std::size_t next_ = 0;
  int n_running_ = 0;
  Result<void> result_;
  net::Event changed_;
  bool stopped_ = false;
  bool told_of_fallback_ = false;
  std::shared_ptr<WeightsReceiver> receiver_;
  std::optional<rpc::LinkStats> link_;
};

}  // namespace recua::cluster
