#pragma once
/// Session: one coordinator's slice on a worker, from loading it to running it.
///
/// Life: load() -> channels arrive by attach() -> start() -> the stage runs on its own loop ->
/// close(). Made and driven on the worker's control loop; only the stage lives elsewhere. Shared,
/// because the running stage keeps its session alive until it has really ended.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/chunks.h"
#include "cluster/offload.h"
#include "cluster/slice_weights.h"
#include "cluster/stage.h"
#include "model/communicator.h"
#include "model/hyperparams.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "rpc/handshake.h"
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
  std::function<std::uint64_t()> memory_free;  // Bytes that a new session may use.
};

class Session : public std::enable_shared_from_this<Session> {
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
  };
  /// Checks a LoadSlice message. kProtocol, kUnsupported, kCorrupt: names the field.
  static Result<Request> parse(const wire::LoadSlice& message);

  /// Asks the coordinator for a chunk.
  using Fetch = std::function<boost::asio::awaitable<Result<std::string>>(ChunkRef, Digest)>;
  using Progress =
      std::function<void(std::uint64_t done, std::uint64_t total, std::uint64_t fetched)>;

  Session(SessionEnv env, Request request);
  ~Session();

  [[nodiscard]] rpc::ChannelId id() const { return request_.id; }
  [[nodiscard]] const rpc::Secret& secret() const { return request_.secret; }
  /// The ring that whoever sends to this slice fills. After load().
  [[nodiscard]] const rpc::RingShape& ring() const { return ring_shape_; }
  [[nodiscard]] const SourceCounts& counts() const { return counts_; }
  /// What the session takes, from the start of load() until it is destroyed.
  [[nodiscard]] std::uint64_t memory_bytes() const { return memory_bytes_; }
  [[nodiscard]] bool loaded() const { return loaded_; }

  /// Loads weights and allocates caches. kNotFound: chunks are missing and may not be fetched.
  boost::asio::awaitable<Result<void>> load(Fetch fetch, Progress progress);

  /// Takes a connection whose channel handshake is done. kProtocol: not loaded yet, or there is
  /// one.
  Result<void> attach_in(std::unique_ptr<net::Connection> connection);
  Result<void> attach_out(std::unique_ptr<net::Connection> connection, rpc::RingShape ring);

  /// Starts the stage. failed is called on the control loop if it ends by itself.
  Result<void> start(std::function<void(const Error&)> failed);
  /// Ends whatever runs. Idempotent.
  void close();

 private:
  boost::asio::awaitable<Result<void>> fetch_missing(SliceWeights& weights, Fetch fetch,
                                                     const Progress& progress,
                                                     std::uint64_t total_bytes);
  Result<void> build(const model::WeightSource& weights);

  SessionEnv env_;
  Request request_;
  SourceCounts counts_;
  std::uint64_t memory_bytes_ = 0;

  // Members die from the bottom up, after the stage has ended: the stage with its connections, the
  // loop that served them (joining its thread), the memory they used, the weights, the device.
  std::unique_ptr<compute::Device> device_;
  std::unique_ptr<model::WeightSource> weights_;
  model::SingleRank communicator_;
  std::unique_ptr<model::SliceRunner> runner_;
  std::unique_ptr<compute::Buffer> ring_;
  rpc::RingShape ring_shape_;
  rpc::RingShape out_ring_;
  std::unique_ptr<net::Connection> in_;
  std::unique_ptr<net::Connection> out_;
  std::unique_ptr<StageLoop> loop_;
  std::shared_ptr<Stage> stage_;  // Shared with a pending stop() on its loop only.
  bool loaded_ = false;
  std::atomic<bool> closed_ = false;  // Also read by threads that load.
};

}  // namespace recua::cluster
