#pragma once
/// A coordinator's answers to one worker that lacks chunks of its slice: over the control
/// connection, or pushed on a channel for weights (weights_push.h).
///
/// Threads: the control loop.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/offload.h"
#include "cluster/slice_weights.h"
#include "cluster/weights_push.h"
#include "gguf/gguf_file.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

class ChunkServer {
 public:
  /// tensors: all of the file's, as announced; they outlive this.
  ChunkServer(std::shared_ptr<const gguf::GgufFile> file, const std::vector<TensorSpec>& tensors,
              std::uint64_t session)
      : file_(std::move(file)), tensors_(tensors), session_(session) {}

  /// Announces one more tensor, as an index into all of them; the worker names it by its place in
  /// this order.
  void announce(std::uint32_t tensor) { announced_.push_back(tensor); }

  /// kNotFound: not one of the worker's chunks. kUnavailable: no channel (any more).
  boost::asio::awaitable<Result<wire::ControlMessage>> answer(wire::FetchChunk request);

  /// Pushes on this channel from here on.
  Result<void> push_on(Offload& offload, WeightsPusher::Parts parts);
  /// Ends the channel.
  void close();

 private:
  [[nodiscard]] Result<std::span<const std::byte>> find(const wire::FetchChunk& request) const;

  std::shared_ptr<const gguf::GgufFile> file_;
  const std::vector<TensorSpec>& tensors_;
  std::uint64_t session_;
  std::vector<std::uint32_t> announced_;
  std::shared_ptr<WeightsPusher> pusher_;
};

}  // namespace recua::cluster
