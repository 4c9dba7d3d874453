// Chunks pushed on a channel, and what happens when they are not.
#include "cluster/weights_channel.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/random.h"
#include "base/scratch_folder.h"
#include "cluster/chunks.h"
#include "cluster/weights_fetch.h"
#include "cluster/weights_push.h"
#include "net/sim/sim_network.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr std::size_t kTensors = 12;
constexpr std::size_t kTensorBytes = 4096;

/// A worker on host b that lacks everything, and a coordinator on host a with an end of a channel.
struct World {
  World() {
    Rng rng(7);
    bytes.resize(kTensors * kTensorBytes);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next() & 255);
    std::vector<TensorSpec> specs;
    for (std::size_t i = 0; i < kTensors; ++i) {
      specs.push_back({.name = "t" + std::to_string(i),
                       .n_in = kTensorBytes / 4,
                       .n_out = 1,
                       .bytes = kTensorBytes,
                       .file = "m.gguf",
                       .offset = i * kTensorBytes,
                       .chunks = {sha256(chunk(i))}});
    }
    const ChunkHasher hasher(scratch / "cache", 1, false);
    auto begun = SliceWeights::begin(std::move(specs), {}, hasher, ChunkStore(scratch / "cache"));
    RECUA_CHECK(begun.ok());
    weights = std::move(*begun);
    a.spin = b.spin = net::Duration::zero();
    source.fetch = [this](ChunkRef ref, Digest) -> asio::awaitable<Result<std::string>> {
      ++n_fetched;
      co_return std::string(as_text(chunk(ref.tensor)));
    };
    source.open_channel = [this]() -> asio::awaitable<Result<void>> { return open(); };
    source.push = [this](ChunkRef ref, Digest,
                         std::uint64_t request) -> asio::awaitable<Result<void>> {
      return push(ref, request);
    };
  }

  [[nodiscard]] std::span<const std::byte> chunk(std::size_t tensor) const {
    return std::span(bytes).subspan(tensor * kTensorBytes, kTensorBytes);
  }

  asio::awaitable<Result<void>> open() {
    const net::Endpoint endpoint{.host = "b", .port = 7500};
    auto connected = co_await a.network->connect(endpoint, std::chrono::seconds(5));
    auto accepted = co_await listener->accept();
    RECUA_CHECK(connected.ok() && accepted.ok());
    rpc::PeerInfo peer;
    peer.name = "coordinator";
    const auto ring = fetcher->ring();
    RECUA_CHECK(ring.ok());
    EXPECT_EQ(ring->n_slots, kWeightsSlots);
    EXPECT_EQ(ring->slot_bytes, 8192u);  // A header and 4096 bytes, in whole pages.
    Result<void> attached = fetcher->attach(std::move(*accepted), peer);
    RECUA_CHECK(attached.ok());
    WeightsPusher::Parts parts;
    parts.context.env = a;
    parts.id = kId;
    parts.connection = std::move(*connected);
    parts.ring = *ring;
    parts.ended = [this](const rpc::LinkStats& stats) { pushed = stats; };
    auto started = WeightsPusher::start(offload, std::move(parts));
    RECUA_CHECK(started.ok());
    pusher = std::move(*started);
    co_return ok();
  }

  asio::awaitable<Result<void>> push(ChunkRef ref, std::uint64_t request) {
    ++n_pushed;
    if (before_push) before_push();
    if (!swallow) co_return co_await pusher->push(request + request_offset, chunk(ref.tensor));
    co_return ok();
  }

  Result<void> run() {
    WeightsFetcher::Parts parts;
    parts.env = b;
    parts.offload = &offload;
    parts.name = "b";
    parts.id = kId;
    parts.weights = weights;
    parts.source = source;
    parts.progress = [this](std::uint64_t done, std::uint64_t, std::uint64_t) { told = done; };
    parts.total_bytes = bytes.size();
    parts.reported = [](const rpc::LinkStats&, const std::string&) {};
    fetcher = std::make_shared<WeightsFetcher>(std::move(parts));
    Result<void> result = loop.run(fetcher->run());
    loop.run_for(std::chrono::seconds(1));  // Until the other end has noticed.
    return result;
  }

  void expect_complete() {
    EXPECT_EQ(weights->counts().fetched, bytes.size());
    EXPECT_EQ(told, bytes.size());
    const auto loaded = std::move(*weights).finish();
    for (std::size_t i = 0; i < kTensors; ++i) {
      const auto tensor = loaded->tensor("t" + std::to_string(i));
      ASSERT_TRUE(tensor.ok());
      EXPECT_TRUE(std::equal(tensor->bytes.begin(), tensor->bytes.end(), chunk(i).begin()));
    }
  }

  static constexpr rpc::ChannelId kId{.session = 5, .epoch = 1};
  net::SimLoop loop;
  net::SimNetwork network{loop, {}};
  net::Env a = network.env("a");
  net::Env b = network.env("b");
  std::unique_ptr<net::Listener> listener = *b.network->listen(net::Endpoint{"", 7500});
  InlineOffload offload{loop.executor()};
  ScratchFolder scratch;
  std::vector<std::byte> bytes;
  std::shared_ptr<SliceWeights> weights;
  ChunkSource source;
  std::shared_ptr<WeightsFetcher> fetcher;
  std::shared_ptr<WeightsPusher> pusher;
  std::optional<rpc::LinkStats> pushed;
  std::function<void()> before_push;
  bool swallow = false;  // Chunks are promised and never sent.
  std::uint64_t request_offset = 0;
  std::size_t n_pushed = 0;
  std::size_t n_fetched = 0;
  std::uint64_t told = 0;
};

TEST(WeightsChannel, CarriesAllChunksWithoutCopyingThemOnTheWay) {
  World world;
  const auto done = world.run();
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(world.n_fetched, 0u);
  ASSERT_TRUE(world.pushed.has_value());
  EXPECT_EQ(world.pushed->counters.messages, kTensors);
  EXPECT_EQ(world.pushed->counters.payload_copies, 0u);
  ASSERT_TRUE(world.fetcher->link().has_value());
  EXPECT_FALSE(world.fetcher->link()->sends);
  EXPECT_EQ(world.fetcher->link()->counters.messages, kTensors);
  world.expect_complete();
}

TEST(WeightsChannel, IsNotNeeded) {
  World world;
  world.source.open_channel = {};
  ASSERT_TRUE(world.run().ok());
  EXPECT_EQ(world.n_fetched, kTensors);
  EXPECT_FALSE(world.fetcher->link().has_value());
  world.expect_complete();
}

TEST(WeightsChannel, IsDoneWithoutWhenTheCoordinatorOpensNone) {
  World world;
  world.source.open_channel = []() -> asio::awaitable<Result<void>> {
    co_return Error{ErrorCode::kUnavailable, "no way through"};
  };
  ASSERT_TRUE(world.run().ok());
  EXPECT_EQ(world.n_fetched, kTensors);
  EXPECT_EQ(world.n_pushed, 0u);
  EXPECT_EQ(world.fetcher->ring().error().code, ErrorCode::kNotFound);  // It may not come late.
  world.expect_complete();
}

TEST(WeightsChannel, RefusesAChunkWithAnotherHash) {
  World world;
  world.before_push = [&world] {
    if (world.n_pushed == 3) world.bytes[2 * kTensorBytes + 9] ^= std::byte{1};
  };
  const auto done = world.run();
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(done.error().message.find("tensor t2"), std::string::npos) << done.error().message;
  EXPECT_EQ(world.n_fetched, 0u);
}

TEST(WeightsChannel, LostHalfWayLeavesTheRestToTheControlConnection) {
  World world;
  world.before_push = [&world] {
    if (world.n_pushed == 8) world.pusher->close();
  };
  const auto done = world.run();
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_GT(world.n_fetched, 0u);
  EXPECT_LT(world.n_fetched, kTensors);
  EXPECT_EQ(world.n_fetched + world.fetcher->link()->counters.messages, kTensors);
  world.expect_complete();
}

TEST(WeightsChannel, IsGivenUpWhenAPromisedChunkDoesNotCome) {
  World world;
  world.before_push = [&world] { world.swallow = world.n_pushed > 4; };
  const net::TimePoint begin = world.loop.now();
  const auto done = world.run();
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_GE(world.loop.now() - begin, std::chrono::minutes(2));
  EXPECT_EQ(world.n_fetched, kTensors - 4);
  world.expect_complete();
}

TEST(WeightsChannel, EndsWhenAChunkComesThatNobodyAskedFor) {
  World world;
  world.request_offset = 1000;
  const auto done = world.run();
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(world.n_fetched, kTensors);
  EXPECT_EQ(world.fetcher->link()->counters.messages, 1u);
  world.expect_complete();
}

TEST(WeightsChannel, EndsWhenTheSessionDoes) {
  World world;
  world.swallow = true;
  world.before_push = [&world] {
    if (world.n_pushed == 6) world.fetcher->stop();
  };
  const auto done = world.run();
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(done.error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(world.pushed.has_value());
}

TEST(WeightsChannel, TellsThatAChunkIsLargerThanItsSlots) {
  World world;
  world.source.push = [&world](ChunkRef, Digest,
                               std::uint64_t request) -> asio::awaitable<Result<void>> {
    const std::vector<std::byte> large(9000);
    Result<void> sent = co_await world.pusher->push(request, large);
    EXPECT_EQ(sent.error().code, ErrorCode::kInvalidArgument);
    co_return sent;
  };
  ASSERT_TRUE(world.run().ok());
  EXPECT_EQ(world.n_fetched, kTensors);
  world.expect_complete();
}

}  // namespace
}  // namespace recua::cluster
