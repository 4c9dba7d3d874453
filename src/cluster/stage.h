#pragma once
/// Stage: one slice at work. It takes micro-batches from the channel of the stage before (or of the
/// coordinator), runs them, and writes the result into the channel of the next stage (the last
/// one: back to the coordinator). A rank of several that has no such channel keeps it: all ranks
/// have the same result.
///
/// A polled state machine: poll() does what can be done now, drive() runs it on a loop, spinning
/// for a short time before it sleeps. Rows are computed from the slot in which they arrived into a
/// buffer from which they are sent: no copy on the way. A micro-batch that fails is passed on as a
/// failure message, so that the coordinator hears of it in order. Threads: made anywhere, then used
/// by the one thread of its loop.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/bytes.h"
#include "base/result.h"
#include "cluster/rank_group.h"
#include "compute/device.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/channel.h"
#include "rpc/link_metrics.h"

namespace recua::cluster {

/// Descriptors are small; this leaves room for hundreds of sequences with their settings.
inline constexpr std::uint64_t kDescriptorBytesMax = std::uint64_t{512} << 10;
/// Messages that may be under way on one hop: two stages' worth of overlap and some slack.
inline constexpr std::uint32_t kSlotsPerHop = 4;

/// The ring for messages of up to n_rows rows of row_bytes each.
rpc::RingShape ring_shape(std::uint64_t n_rows, std::uint64_t row_bytes);
/// The ring for results: n_logit_rows full rows of logits, and candidates for n_ubatch outputs.
rpc::RingShape result_ring_shape(std::uint32_t n_logit_rows, std::uint32_t vocab_size);
/// Rows of logits that a result message may carry, so that a slot stays below 16 MiB or one row.
std::uint32_t logit_rows_per_message(std::uint32_t vocab_size, std::uint32_t n_ubatch);

/// What a stage's messages are sent from. Allocated once, before the channel is made, which
/// registers the memory where the transport needs that; free again when its channel has passed it.
class StageBuffers {
 public:
  /// For activations of n_ubatch rows; of the last stage for as many rows of logits as fit a
  /// result, and a slot of out_ring. kResourceExhausted.
  static Result<StageBuffers> allocate(compute::Device& device, const model::SliceRunner& runner,
                                       std::size_t vocab_size, const rpc::RingShape& out_ring);
  /// What allocate() takes, from above.
  static std::uint64_t bytes(const model::Slice& slice, std::uint32_t n_ubatch,
                             std::uint32_t hidden_size, std::uint32_t vocab_size);

  struct OutBuffer {
    compute::Rows rows;  // Activations, or logits of the last stage.
    ByteWriter descriptor;
  };

  /// All of it, for registration; empty when no row fits.
  [[nodiscard]] std::span<std::byte> memory() const;
  [[nodiscard]] std::size_t size() const { return buffers_.size(); }
  [[nodiscard]] OutBuffer& at(std::uint64_t message) { return buffers_[message % buffers_.size()]; }

 private:
  std::unique_ptr<compute::Buffer> memory_;
  std::vector<OutBuffer> buffers_;
};

class Stage {
 public:
  struct Parts {
    rpc::ChannelId id;
    compute::Device* device = nullptr;
    model::SliceRunner* runner = nullptr;
    std::size_t vocab_size = 0;
    std::string name = {};            // Of this stage, for failures: "box2:7500, layers 4-7".
    compute::Buffer* ring = nullptr;  // The memory behind `in`.
    StageBuffers* buffers = nullptr;  // `out` knows their memory.
    std::unique_ptr<rpc::ChannelReceiver> in = {};
    std::unique_ptr<rpc::ChannelSender> out = {};  // Null: another rank sends what all have.
    RankGroup* group = nullptr;                    // Null: no other ranks.
    std::function<void(const std::string&)> report_group = {};  // What it has to say of itself.
    /// Held while computing: sessions share the processors. Not by ranks: two workers would each
    /// hold their own and wait for the other's.
    std::mutex* compute_mutex = nullptr;
  };

  explicit Stage(Parts parts) : parts_(std::move(parts)) {}

  /// True when something moved. An error ends the stage: a channel broke.
  Result<bool> poll();
  /// Polls until an error, which it returns, or a requested stop; then closes its channels. Once.
  boost::asio::awaitable<Result<void>> drive(net::Env env);
  /// Makes drive() end soon, once it is awake. From any thread.
  void request_stop() { stop_requested_ = true; }
  /// From the stage's loop.
  void wake();
  /// What its channels did, once drive() has ended; the input first, then the output if any.
  [[nodiscard]] const std::vector<rpc::LinkStats>& link_stats() const { return stats_; }

 private:
  using OutBuffer = StageBuffers::OutBuffer;

  Result<void> begin();
  Result<void> work();
  /// Puts the result's logits into the buffer's rows; false when they do not fit.
  bool store_logits(OutBuffer& buffer, rpc::TensorHeader& header) const;
  /// Whether the output has a credit and a buffer.
  [[nodiscard]] bool can_send() const;
  Result<void> send(OutBuffer& buffer, rpc::TensorHeader header);

  Parts parts_;
  std::vector<rpc::LinkStats> stats_;
  const rpc::Incoming* incoming_ = nullptr;
  model::StepResult result_;
  std::atomic<bool> stop_requested_ = false;
  std::shared_ptr<net::Event> wake_;
};

}  // namespace recua::cluster
