#include "cluster/chunk_server.h"

#include <fmt/format.h>

#include "base/bytes.h"
#include "cluster/chunks.h"

namespace recua::cluster {

namespace asio = boost::asio;

Result<std::span<const std::byte>> ChunkServer::find(const wire::FetchChunk& request) const {
  if (request.session() != session_ || request.tensor() >= announced_.size()) {
    return Error{ErrorCode::kNotFound, "no such session or tensor"};
  }
  const TensorSpec& spec = tensors_[announced_[request.tensor()]];
  if (request.chunk() >= spec.chunks.size() ||
      request.sha256() != as_text(spec.chunks[request.chunk()])) {
    return Error{ErrorCode::kNotFound, fmt::format("tensor {} has no such chunk", spec.name)};
  }
  const gguf::TensorInfo* tensor = file_->find(spec.name);
  return tensor->data.subspan(request.chunk() * kChunkBytes,
                              chunk_size(tensor->n_bytes, request.chunk()));
}

asio::awaitable<Result<wire::ControlMessage>> ChunkServer::answer(wire::FetchChunk request) {
  RECUA_CO_ASSIGN_OR_RETURN(const std::span<const std::byte> bytes, find(request));
  wire::ControlMessage reply;
  if (!request.by_channel()) {
    reply.mutable_chunk()->set_data(bytes.data(), bytes.size());
    co_return reply;
  }
  // Both until the bytes were copied, whatever becomes of this object.
  const std::shared_ptr<WeightsPusher> pusher = pusher_;
  const std::shared_ptr<const gguf::GgufFile> file = file_;
  if (pusher == nullptr) {
    co_return Error{ErrorCode::kUnavailable, "there is no channel for weights"};
  }
  RECUA_CO_RETURN_IF_ERROR(co_await pusher->push(request.request(), bytes));
  reply.mutable_done();
  co_return reply;
}

Result<void> ChunkServer::push_on(Offload& offload, WeightsPusher::Parts parts) {
  RECUA_ASSIGN_OR_RETURN(pusher_, WeightsPusher::start(offload, std::move(parts)));
  return ok();
}

void ChunkServer::close() {
  if (pusher_ != nullptr) std::exchange(pusher_, nullptr)->close();
}

}  // namespace recua::cluster
