#include "cluster/chunk_requests.h"

#include <string>
#include <utility>

#include "base/bytes.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr net::Duration kFetchTimeout = std::chrono::minutes(2);
constexpr net::Duration kOpenTimeout = std::chrono::seconds(30);

wire::ControlMessage fetch_chunk(rpc::ChannelId id, ChunkRef ref, const Digest& digest) {
  wire::ControlMessage out;
  wire::FetchChunk& fetch = *out.mutable_fetch_chunk();
  fetch.set_session(id.session);
  fetch.set_sha256(std::string(as_text(digest)));
  fetch.set_tensor(ref.tensor);
  fetch.set_chunk(ref.chunk);
  return out;
}

Error something_else() {
  return Error{ErrorCode::kProtocol,
               "the coordinator answered a request for weights with something else"};
}

}  // namespace

ChunkSource make_chunk_source(rpc::ChannelId id, const CallCoordinator& call, bool pushes) {
  ChunkSource out;
  out.fetch = [id, call](ChunkRef ref, Digest digest) -> asio::awaitable<Result<std::string>> {
    wire::ControlMessage ask = fetch_chunk(id, ref, digest);
    Result<wire::ControlMessage> reply = co_await call(std::move(ask), kFetchTimeout);
    if (!reply.ok()) co_return Error(std::move(reply).error());
    if (!reply->has_chunk()) co_return something_else();
    co_return std::move(*reply->mutable_chunk()->mutable_data());
  };
  if (!pushes) return out;
  out.open_channel = [id, call]() -> asio::awaitable<Result<void>> {
    wire::ControlMessage ask;
    ask.mutable_open_weights()->set_session(id.session);
    ask.mutable_open_weights()->set_epoch(id.epoch);
    Result<wire::ControlMessage> reply = co_await call(std::move(ask), kOpenTimeout);
    if (!reply.ok()) co_return Error(std::move(reply).error());
    if (!reply->has_done()) co_return something_else();
    co_return ok();
  };
  out.push = [id, call](ChunkRef ref, Digest digest,
                        std::uint64_t request) -> asio::awaitable<Result<void>> {
    wire::ControlMessage ask = fetch_chunk(id, ref, digest);
    ask.mutable_fetch_chunk()->set_by_channel(true);
    ask.mutable_fetch_chunk()->set_request(request);
    Result<wire::ControlMessage> reply = co_await call(std::move(ask), kFetchTimeout);
    if (!reply.ok()) co_return Error(std::move(reply).error());
    if (!reply->has_done()) co_return something_else();
    co_return ok();
  };
  return out;
}

}  // namespace recua::cluster
