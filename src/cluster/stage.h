#pragma once
/// Stage: one slice at work. It takes micro-batches from the channel of the stage before (or of the
/// coordinator), runs them, and writes the result into the channel of the next stage (the last one:
/// back to the coordinator).
///
/// A polled state machine: poll() does what can be done now, drive() runs it on a loop, spinning
/// for a short time before it sleeps. Rows are computed from the slot in which they arrived into a
/// buffer from which they are sent: no copy on the way. A micro-batch that fails is passed on as a
/// failure message, so that the coordinator hears of it in order. Threads: create() anywhere, then
/// the one thread of its loop.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/bytes.h"
#include "base/result.h"
#include "compute/device.h"
#include "model/slice_runner.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/channel.h"

namespace recua::cluster {

/// Descriptors are small; this leaves room for hundreds of sequences with their settings.
inline constexpr std::uint64_t kDescriptorBytesMax = std::uint64_t{512} << 10;
/// Messages that may be under way on one hop: two stages' worth of overlap and some slack.
inline constexpr std::uint32_t kSlotsPerHop = 4;

/// The ring for messages of up to n_rows rows of row_bytes each.
rpc::RingShape ring_shape(std::uint64_t n_rows, std::uint64_t row_bytes);

class Stage {
 public:
  struct Parts {
    rpc::ChannelId id;
    compute::Device* device = nullptr;
    model::SliceRunner* runner = nullptr;
    std::size_t vocab_size = 0;
    std::string name = {};            // Of this stage, for failures: "box2:7500, layers 4-7".
    compute::Buffer* ring = nullptr;  // The memory behind `in`.
    std::unique_ptr<rpc::ChannelReceiver> in = {};
    std::unique_ptr<rpc::ChannelSender> out = {};
    std::mutex* compute_mutex = nullptr;  // Held while computing: sessions share the device.
  };

  static Result<std::unique_ptr<Stage>> create(Parts parts);

  /// True when something moved. An error ends the stage: a channel broke.
  Result<bool> poll();
  /// Polls until an error, which it returns, or a requested stop; then closes its channels. Once.
  boost::asio::awaitable<Result<void>> drive(net::Env env);
  /// Makes drive() end soon, once it is awake. From any thread.
  void request_stop() { stop_requested_ = true; }
  /// From the stage's loop.
  void wake();

 private:
  /// What a message is sent from; free again when its channel has passed it.
  struct OutBuffer {
    compute::Rows rows;         // Activations; not of the last stage.
    std::vector<float> logits;  // Of the last stage.
    ByteWriter descriptor;
  };

  explicit Stage(Parts parts) : parts_(std::move(parts)) {}
  Result<void> work();
  Result<void> send(OutBuffer& buffer, rpc::TensorHeader header, std::span<const std::byte> rows);

  Parts parts_;
  std::unique_ptr<compute::Buffer> memory_;  // Behind the out buffers.
  std::vector<OutBuffer> buffers_;
  std::optional<rpc::Incoming> incoming_;
  model::StepResult result_;
  std::atomic<bool> stop_requested_ = false;
  std::shared_ptr<net::Event> wake_;
};

}  // namespace recua::cluster
