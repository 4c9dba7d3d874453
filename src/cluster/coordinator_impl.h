#pragma once
/// ClusterImpl: the cluster behind the handle that open_cluster() returns. coordinator.cc has its
/// life from the plan to the end, coordinator_workers.cc the connections to the workers,
/// coordinator_weights.cc the loading of their slices, coordinator_channels.cc the links.
///
/// Errors name the worker; the first failure ends everything else and is the one that is told.
/// Shared by the handle that the caller owns and by the coroutines that are under way; callbacks
/// hold it weakly. Threads: the loop of env.executor.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/chunk_server.h"
#include "cluster/coordinator.h"
#include "cluster/link_book.h"
#include "model/hyperparams.h"
#include "rpc/handshake.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

/// One worker as the coordinator sees it.
struct Peer {
  net::Endpoint endpoint;
  std::string name;  // "b:7500"
  rpc::PeerInfo info;
  std::unique_ptr<rpc::ControlConnection> control;
  std::unique_ptr<ChunkServer> chunks;  // From the time when it loads.
  bool weights_asked = false;           // For a channel, once.
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes_total = 0;
};

/// A channel of the coordinator's own after its handshake.
struct OpenedChannel {
  std::unique_ptr<net::Connection> connection;
  rpc::ChannelHandshake agreed;
};

class ClusterImpl final : public Cluster, public std::enable_shared_from_this<ClusterImpl> {
 public:
  ClusterImpl(net::Env env, Offload& offload, std::shared_ptr<const gguf::GgufFile> file,
              model::SliceOptions slice_options, ClusterOptions options, ClusterProgress progress);

  boost::asio::awaitable<Result<void>> open();
  /// Drops all connections.
  void disconnect();

  RemoteExecutor& executor() override { return *executor_; }
  const Plan& plan() const override { return plan_; }
  const SourceCounts& sources() const override { return sources_; }
  std::vector<rpc::LinkStats> links() const override { return links_.stats(); }
  boost::asio::awaitable<void> close() override;

 private:
  [[nodiscard]] std::size_t n_ranks() const { return options_.n_ranks; }
  [[nodiscard]] bool is_tied() const { return file_->find("output.weight") == nullptr; }
  boost::asio::awaitable<Result<void>> make_plan();
  void lost(const Error& error);

  // Connections to workers, and what the workers say.
  boost::asio::awaitable<Result<void>> connect(std::size_t index);
  boost::asio::awaitable<Result<wire::ControlMessage>> call(std::size_t index,
                                                            wire::ControlMessage request,
                                                            net::Duration timeout);
  boost::asio::awaitable<Result<OpenedChannel>> channel_to(std::size_t index,
                                                           rpc::ChannelRequest request);
  void take_notice(std::size_t index, const wire::ControlMessage& notice);

  // Slices and their weights.
  boost::asio::awaitable<Result<void>> hash();
  boost::asio::awaitable<Result<void>> load(std::size_t index);
  boost::asio::awaitable<Result<wire::ControlMessage>> answer(std::size_t index,
                                                              wire::ControlMessage request);
  boost::asio::awaitable<Result<wire::ControlMessage>> open_weights(std::size_t index,
                                                                    wire::OpenWeights request);

  // Links, and the start of all sessions once they have theirs.
  boost::asio::awaitable<Result<void>> open_channels();
  /// Every rank of a group has the same rows: those of the next group take them from it in turn.
  /// The channel into a worker has its number, channels between ranks have numbers of their own.
  [[nodiscard]] std::vector<boost::asio::awaitable<Result<void>>> plan_links();
  boost::asio::awaitable<Result<void>> link(std::size_t from, std::size_t to, std::uint32_t number);
  boost::asio::awaitable<Result<void>> start(std::size_t index);
  rpc::LinkContext link_context(std::uint32_t number, bool sends);

  net::Env env_;
  Offload& offload_;
  std::shared_ptr<const gguf::GgufFile> file_;
  model::SliceOptions slice_options_;
  ClusterOptions options_;
  ClusterProgress progress_;
  rpc::PeerInfo self_;
  rpc::ChannelId id_;
  rpc::Secret secret_{};
  model::HyperParams hyperparams_;
  std::uint32_t n_logit_rows_ = 1;
  std::vector<TensorSpec> tensors_;
  std::vector<WorkerOffer> offers_;
  Plan plan_;
  SourceCounts sources_;
  std::vector<Peer> peers_;
  std::optional<Error> failure_;
  LinkBook links_;
  std::unique_ptr<RemoteExecutor> executor_;
};

}  // namespace recua::cluster
