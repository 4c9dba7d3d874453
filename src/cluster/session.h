#pragma once
/// Session: one coordinator's slice on a worker, from loading it to running it.
///
/// Life: load() -> channels come by attach() and attach_out() -> start() -> the stage runs on its
/// own loop -> close(). Made and driven on the worker's control loop; only the stage lives
/// elsewhere. Shared, because the running stage keeps its session alive until it has really ended.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/channel_host.h"
#include "cluster/chunks.h"
#include "cluster/link_wire.h"
#include "cluster/offload.h"
#include "cluster/rank_group.h"
#include "cluster/ring_buffer.h"
#include "cluster/slice_weights.h"
#include "cluster/stage.h"
#include "cluster/weights_fetch.h"
#include "collective/wire_format.h"
#include "model/hyperparams.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/link_metrics.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

using DeviceFactory = std::function<Result<std::unique_ptr<compute::Device>>()>;

/// What all sessions of a worker use.
struct SessionEnv {
  std::string name;  // Of the worker, for messages.
  net::Env env;
  Offload* offload = nullptr;
  DeviceFactory make_device;
  std::filesystem::path models_dir;
  std::filesystem::path cache_dir;
  std::size_t n_threads = 1;  // For hashing.
  std::mutex* compute_mutex = nullptr;
  std::function<std::uint64_t()> memory_free;    // Bytes that a new session may use.
  const rpc::LinkPolicy* link_policy = nullptr;  // Outlives the sessions. Null: TCP only.
};

/// What a link runs on, and why; link.sends: we are its sender. Under group_report_number() what
/// the ranks agreed on.
using LinkReported =
    std::function<void(const rpc::LinkStats& link, std::uint32_t number, const std::string& text)>;

/// What a session tells its worker. Called on the control loop.
struct SessionEvents {
  LoadProgress progress;
  std::function<void(const Error&)> failed;  // The stage ended by itself.
  LinkReported reported;
};

/// For a link to `end` that is served by a session's own loop; reported is called on the control
/// loop.
rpc::LinkContext session_link_context(const SessionEnv& env, StageLoop& loop, const ChannelEnd& end,
                                      bool sends, const LinkReported& reported);

class Session final : public ChannelHost, public std::enable_shared_from_this<Session> {
 public:
  struct Request {
    rpc::ChannelId id;
    rpc::Secret secret{};
    std::string model;
    model::HyperParams hyperparams;
    std::vector<TensorSpec> tensors;
    model::Slice slice;
    model::SliceOptions options;
    bool fetch_allowed = false;
    bool verify = false;
    collective::WireFormat sums = collective::WireFormat::kF32;
    bool may_overlap = false;
  };
  /// Checks a LoadSlice message. kProtocol, kUnsupported, kCorrupt: names the field.
  static Result<Request> parse(const wire::LoadSlice& message);

  Session(SessionEnv env, Request request, SessionEvents events);
  ~Session() override;

  [[nodiscard]] rpc::ChannelId id() const override { return request_.id; }
  [[nodiscard]] const rpc::Secret& secret() const override { return request_.secret; }
  [[nodiscard]] Result<rpc::RingShape> ring(const rpc::ChannelRequest& request) const override;
  Result<void> attach(std::unique_ptr<net::Connection> connection,
                      const rpc::ChannelRequest& request, const rpc::PeerInfo& peer) override;
  [[nodiscard]] const SourceCounts& counts() const { return counts_; }
  /// What the coordinator's user should know of the loading: files that differ. A sentence each.
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }
  /// What the session takes, from the start of load() until it is destroyed.
  [[nodiscard]] std::uint64_t memory_bytes() const override { return memory_bytes_; }
  [[nodiscard]] bool loaded() const override { return loaded_; }

  /// Loads weights and allocates caches. kNotFound: chunks are missing and may not be fetched.
  boost::asio::awaitable<Result<void>> load(ChunkSource source);

  /// Takes a channel that this slice sends on: to a next one, or to another rank. kProtocol: not
  /// loaded yet, or it is there already.
  Result<void> attach_out(ChannelEnd end) override;

  /// Starts the stage.
  Result<void> start();
  /// Ends whatever runs. Idempotent.
  void close();
  /// Returns when what close() ended has ended, or time is up.
  boost::asio::awaitable<void> wait_until_ended(net::Duration timeout);
  /// What the links of the session did, as far as they have ended.
  [[nodiscard]] const std::vector<SessionLink>& links() const { return links_; }

 private:
  boost::asio::awaitable<Result<void>> fetch_missing(std::shared_ptr<SliceWeights> weights,
                                                     ChunkSource source, std::uint64_t total_bytes);
  Result<void> build(const model::WeightSource& weights);
  [[nodiscard]] rpc::LinkContext link_context(const ChannelEnd& end, bool sends);
  [[nodiscard]] std::function<void(const std::string&)> group_reporter() const;
  void stage_ended(const Result<void>& ended);

  SessionEnv env_;
  Request request_;
  SessionEvents events_;
  std::shared_ptr<WeightsFetcher> fetcher_;  // While it works.
  SourceCounts counts_;
  std::vector<std::string> notes_;
  std::uint64_t memory_bytes_ = 0;

  // Members die from the bottom up, after the stage has ended: the stage with its connections, the
  // loop that served them (joining its thread), the memory they used, the weights, the device.
  std::unique_ptr<compute::Device> device_;
  std::unique_ptr<model::WeightSource> weights_;
  RankGroup group_;
  std::unique_ptr<model::SliceRunner> runner_;
  std::unique_ptr<RingBuffer> ring_;
  StageBuffers buffers_;
  rpc::RingShape ring_shape_;
  ChannelEnd in_;
  ChannelEnd out_;
  std::unique_ptr<StageLoop> loop_;
  std::shared_ptr<Stage> stage_;  // Shared with a pending stop() on its loop only.
  std::vector<SessionLink> links_;
  net::Event ended_;
  bool loaded_ = false;
  std::atomic<bool> closed_ = false;  // Also read by threads that load.
};

}  // namespace recua::cluster
