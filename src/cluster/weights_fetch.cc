#include "cluster/weights_fetch.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <set>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/chunks.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// Chunks asked for before the first has come: 16 MiB under way keep a fast link busy. On a channel
/// two more, so that the next requests are there when slots come back.
constexpr int kFetchesAtOnce = 4;
constexpr int kPushesAtOnce = 6;
constexpr net::Duration kPushTimeout = std::chrono::minutes(2);

}  // namespace

/// Where chunks go, from whichever thread they come.
struct WeightsFetcher::Store {
  explicit Store(std::shared_ptr<SliceWeights> weights_in)
      : weights(std::move(weights_in)), n_missing(weights->missing().size()) {}

  /// kProtocol: nobody asked for it on the channel.
  Result<void> take(std::uint64_t index, std::span<const std::byte> bytes) {
    if (index >= n_missing || !forget(index)) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("a chunk came for request {}, which is not awaited", index)};
    }
    return supply(index, bytes);
  }
  Result<void> supply(std::size_t index, std::span<const std::byte> bytes) {
    const std::scoped_lock lock(supply_mutex);
    Result<void> supplied = weights->supply(weights->missing()[index], bytes);
    fetched = weights->counts().fetched;
    return supplied;
  }
  void await(std::size_t index) {
    const std::scoped_lock lock(awaited_mutex);
    awaited.insert(index);
  }
  /// Whether it was awaited until now.
  bool forget(std::size_t index) {
    const std::scoped_lock lock(awaited_mutex);
    return awaited.erase(index) == 1;
  }

  std::shared_ptr<SliceWeights> weights;
  std::size_t n_missing;
  std::mutex supply_mutex;  // Held while hashing, so never by the control loop.
  std::atomic<std::uint64_t> fetched = 0;
  std::mutex awaited_mutex;
  std::set<std::size_t> awaited;  // On the channel, by index of the missing chunk.
};

WeightsFetcher::WeightsFetcher(Parts parts)
    : parts_(std::move(parts)),
      store_(std::make_shared<Store>(parts_.weights)),
      changed_(parts_.env.executor) {}

asio::awaitable<Result<void>> WeightsFetcher::run() {
  const auto self = shared_from_this();
  std::uint64_t missing_bytes = 0;
  for (const ChunkRef& ref : parts_.weights->missing()) {
    missing_bytes += chunk_size(parts_.weights->spec(ref).bytes, ref.chunk);
  }
  local_bytes_ = parts_.total_bytes - missing_bytes;
  if (parts_.source.open_channel) co_await open_channel();
  n_running_ = receiver_ != nullptr ? kPushesAtOnce : kFetchesAtOnce;
  for (int i = n_running_; i > 0; --i) {
    asio::co_spawn(parts_.env.executor, fetch_some(), [self](std::exception_ptr thrown) {
      if (thrown != nullptr && self->result_.ok()) {
        self->result_ = Error{ErrorCode::kResourceExhausted, "no memory to fetch weights"};
      }
      --self->n_running_;
      self->changed_.notify_all();
    });
  }
  while (n_running_ > 0) co_await changed_.wait();
  if (receiver_ != nullptr) {
    co_await receiver_->close();
    link_ = receiver_->stats();
  }
  if (result_.ok() && stopped_) {
    co_return Error{ErrorCode::kCancelled, "the session was closed while it was loading"};
  }
  co_return result_;
}

void WeightsFetcher::stop() {
  stopped_ = true;
  if (receiver_ != nullptr) receiver_->stop();
}

asio::awaitable<void> WeightsFetcher::open_channel() {
  const auto self = shared_from_this();
  std::uint64_t largest = 0;
  for (const ChunkRef& ref : parts_.weights->missing()) {
    largest = std::max(largest, chunk_size(parts_.weights->spec(ref).bytes, ref.chunk));
  }
  WeightsReceiver::Parts parts;
  parts.env = parts_.env;
  parts.offload = parts_.offload;
  parts.policy = parts_.policy;
  parts.name = parts_.name;
  parts.id = parts_.id;
  parts.chunk_bytes_max = largest;
  parts.take = [store = store_](std::uint64_t index, std::span<const std::byte> bytes) {
    return store->take(index, bytes);
  };
  parts.reported = parts_.reported;
  auto created = WeightsReceiver::create(std::move(parts));
  Result<void> opened = created.ok() ? ok() : Result<void>(Error(created.error()));
  if (opened.ok()) {
    receiver_ = std::move(*created);  // From here on attach() finds it.
    opened = co_await parts_.source.open_channel();
    if (opened.ok() && !receiver_->is_open()) {
      opened = Error{ErrorCode::kProtocol, "the coordinator opened no channel"};
    }
  }
  if (opened.ok()) co_return;
  log_info("weights come over the control connection: {}", opened.error().message);
  if (receiver_ != nullptr) co_await receiver_->close();
  receiver_.reset();
}

asio::awaitable<void> WeightsFetcher::fetch_some() {
  const auto self = shared_from_this();
  while (result_.ok() && next_ < parts_.weights->missing().size() && !stopped_) {
    const std::size_t index = next_++;
    std::optional<Result<void>> supplied;
    if (receiver_ != nullptr && receiver_->is_open()) supplied = co_await by_channel(index);
    if (!supplied.has_value()) supplied = co_await by_control(index);
    if (!supplied->ok() && result_.ok()) result_ = std::move(*supplied);
    const std::uint64_t fetched = store_->fetched;
    parts_.progress(std::min(local_bytes_ + fetched, parts_.total_bytes), parts_.total_bytes,
                    fetched);
  }
}

asio::awaitable<std::optional<Result<void>>> WeightsFetcher::by_channel(std::size_t index) {
  const auto self = shared_from_this();
  const ChunkRef ref = parts_.weights->missing()[index];
  const Digest digest = parts_.weights->spec(ref).chunks[ref.chunk];
  store_->await(index);
  Result<void> stored = co_await parts_.source.push(ref, digest, index);
  if (stored.ok()) stored = co_await receiver_->wait_for(index, kPushTimeout);
  // Forgotten, it may not come any more: then it ends the channel. What has come meanwhile counts.
  if (!stored.ok() && stored.error().code != ErrorCode::kCorrupt && !store_->forget(index)) {
    stored = co_await receiver_->wait_for(index, kPushTimeout);
  }
  if (stored.ok() || stored.error().code == ErrorCode::kCorrupt) co_return stored;
  if (stored.error().code == ErrorCode::kTimeout) receiver_->stop();
  if (!stopped_ && !std::exchange(told_of_fallback_, true)) {
    log_info("weights do not come by their channel ({}): asking over the control connection",
             stored.error().message);
  }
  co_return std::nullopt;
}

asio::awaitable<Result<void>> WeightsFetcher::by_control(std::size_t index) {
  const auto self = shared_from_this();
  const ChunkRef ref = parts_.weights->missing()[index];
  const Digest digest = parts_.weights->spec(ref).chunks[ref.chunk];
  Result<std::string> bytes = co_await parts_.source.fetch(ref, digest);
  if (!bytes.ok()) co_return Error(std::move(bytes).error());
  Result<void> supplied = ok();
  std::function<void()> check = [&] { supplied = store_->supply(index, as_bytes(*bytes)); };
  co_await parts_.offload->run(check);
  co_return supplied;
}

Result<rpc::RingShape> WeightsFetcher::ring() const {
  if (receiver_ == nullptr) {
    return Error{ErrorCode::kNotFound, "this session waits for no channel for weights"};
  }
  return receiver_->ring();
}

Result<void> WeightsFetcher::attach(std::unique_ptr<net::Connection> connection,
                                    const rpc::PeerInfo& peer) {
  if (receiver_ == nullptr) {
    return Error{ErrorCode::kProtocol, "this session waits for no channel for weights"};
  }
  return receiver_->attach(std::move(connection), peer);
}

}  // namespace recua::cluster
