// Coordinator and workers in one thread on a virtual clock: the same tokens and bits as one
// machine, and a designed end for every fault.
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "compute/cpu/cpu_device.h"
#include "model/local_executor.h"
#include "sim_cluster.h"

namespace recua {
namespace {

using model::TokenId;

const std::filesystem::path kGolden = RECUA_GOLDEN_DIR;
const std::filesystem::path kStories = kGolden / "models" / "stories260K.gguf";

nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

struct Expected {
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;
};

Expected expected_case(std::size_t i) {
  const auto json = read_json(kGolden / "models" / "stories260K.expected.json");
  return {json["cases"][i]["prompt_ids"].get<std::vector<TokenId>>(),
          json["cases"][i]["greedy_ids"].get<std::vector<TokenId>>()};
}

std::vector<float> local_logits(const std::filesystem::path& model,
                                const std::vector<TokenId>& tokens) {
  auto device = compute::make_cpu_device({.n_threads = 1});
  RECUA_CHECK(device.ok());
  auto file = gguf::GgufFile::open(model);
  RECUA_CHECK(file.ok());
  const auto shared = std::make_shared<const gguf::GgufFile>(std::move(*file));
  const model::SliceOptions options{.n_ctx = 512,
                                    .n_pages = 16,
                                    .page_tokens = 32,
                                    .k_type = quant::DataType::kF32,
                                    .v_type = quant::DataType::kF32};
  auto executor = model::LocalExecutor::create(**device, shared, options);
  RECUA_CHECK(executor.ok());
  auto result = (*executor)->run(prompt_step(tokens, 0, 32, model::OutputRequest::Kind::kLogits));
  RECUA_CHECK(result.ok());
  return result->outputs.at(0).logits;
}

TEST(ClusterSim, GeneratesTheExpectedTokensOverAnyNumberOfWorkers) {
  const Expected expected = expected_case(0);
  for (const int n_workers : {1, 2, 3, 5}) {
    SCOPED_TRACE(n_workers);
    SimCluster cluster({.seed = 7, .n_workers = n_workers, .model = kStories});
    const auto opened = cluster.open();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    const auto tokens = cluster.generate(expected.prompt, 100);
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    EXPECT_EQ(*tokens, expected.greedy);
    EXPECT_EQ(cluster.cluster().sources().fetched, 0u);
    cluster.close();
    for (int i = 0; i < n_workers; ++i) {
      EXPECT_EQ(cluster.worker(static_cast<std::size_t>(i)).n_sessions(), 0u);
    }
  }
}

TEST(ClusterSim, GivesBitIdenticalLogitsToOneMachine) {
  const auto expected = read_json(kGolden / "random" / "expected.json");
  for (const auto& entry : expected["models"]) {
    const std::string name = entry["model"];
    SCOPED_TRACE(name);
    const auto path = kGolden / "random" / name;
    const auto tokens = entry["prompt_ids"].get<std::vector<TokenId>>();
    auto file = gguf::GgufFile::open(path);
    ASSERT_TRUE(file.ok());
    const auto hyperparams = model::read_hyperparams(*file);
    ASSERT_TRUE(hyperparams.ok());
    const int n_workers = hyperparams->n_layers > 1 ? 2 : 1;  // One layer each at least.
    SimCluster cluster({.seed = 3, .n_workers = n_workers, .n_ubatch = 5, .model = path});
    const auto opened = cluster.open();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    const auto logits = cluster.logits(tokens);
    ASSERT_TRUE(logits.ok()) << logits.error().message;
    EXPECT_EQ(*logits, local_logits(path, tokens));
  }
}

TEST(ClusterSim, SendsWeightsToWorkersThatLackThemAndOnlyOnce) {
  const Expected expected = expected_case(1);
  for (const bool push_chunks : {true, false}) {
    SCOPED_TRACE(push_chunks);
    SimCluster cluster({.seed = 5,
                        .n_workers = 2,
                        .workers_have_file = false,
                        .push_chunks = push_chunks,
                        .model = kStories});
    const auto opened = cluster.open();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    EXPECT_GT(cluster.cluster().sources().fetched, 1'000'000u);
    const auto tokens = cluster.generate(expected.prompt, 20);
    ASSERT_TRUE(tokens.ok());
    EXPECT_TRUE(std::equal(tokens->begin(), tokens->end(), expected.greedy.begin()));
    cluster.close();
    std::uint64_t pushed_bytes[2] = {0, 0};  // As the receivers and the senders count them.
    for (const rpc::LinkStats& link : cluster.links()) {
      if (link.carries != "weights") continue;
      EXPECT_EQ(link.from, "coordinator");
      // A TCP receiver may copy the start of a message that is shorter than the one before.
      if (link.sends) {
        EXPECT_EQ(link.counters.payload_copies, 0u);
      }
      pushed_bytes[link.sends ? 1 : 0] += link.counters.bytes;
    }
    EXPECT_EQ(pushed_bytes[0], pushed_bytes[1]);
    EXPECT_EQ(pushed_bytes[0] > 1'000'000, push_chunks);
    ASSERT_TRUE(cluster.open().ok());
    EXPECT_EQ(cluster.cluster().sources().fetched, 0u);
    EXPECT_GT(cluster.cluster().sources().from_cache, 1'000'000u);
  }
}

/// Breaks connections to a host after so many bytes were read from them; the first ones stay whole.
class BreakingNetwork final : public net::Network {
 public:
  BreakingNetwork(net::Network& inner, std::size_t n_whole, std::size_t bytes_max)
      : inner_(inner), n_whole_(n_whole), bytes_max_(bytes_max) {}
  net::asio::awaitable<Result<std::unique_ptr<net::Connection>>> connect(
      net::Endpoint endpoint, net::Duration timeout) override {
    auto connection = co_await inner_.connect(endpoint, timeout);
    if (!connection.ok() || n_whole_-- > 0) co_return connection;
    n_whole_ = std::size_t{1} << 30;
    n_broken_ += 1;
    co_return std::unique_ptr<net::Connection>(
        std::make_unique<Breaking>(std::move(*connection), bytes_max_));
  }
  Result<std::unique_ptr<net::Listener>> listen(const net::Endpoint& endpoint) override {
    return inner_.listen(endpoint);
  }
  [[nodiscard]] int n_broken() const { return n_broken_; }

 private:
  class Breaking final : public net::Connection {
   public:
    Breaking(std::unique_ptr<net::Connection> inner, std::size_t bytes_max)
        : inner_(std::move(inner)), left_(bytes_max) {}
    [[nodiscard]] const std::string& peer() const override { return inner_->peer(); }
    [[nodiscard]] std::string local_address() const override { return inner_->local_address(); }
    net::asio::awaitable<Result<void>> read(std::span<std::byte> out) override {
      return inner_->read(out);
    }
    net::asio::awaitable<Result<void>> write(std::span<const std::byte> bytes) override {
      return inner_->write(bytes);
    }
    Result<std::size_t> try_read(std::span<std::byte> out) override {
      return inner_->try_read(out);
    }
    Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) override {
      RECUA_ASSIGN_OR_RETURN(const std::size_t n, inner_->try_write(parts));
      if (n >= left_) inner_->close();
      left_ -= std::min(n, left_);
      return n;
    }
    void arm_read(net::ReadyCallback ready) override { inner_->arm_read(std::move(ready)); }
    void arm_write(net::ReadyCallback ready) override { inner_->arm_write(std::move(ready)); }
    Result<std::unique_ptr<net::Connection>> move_to(net::asio::any_io_executor executor) override {
      RECUA_ASSIGN_OR_RETURN(auto moved, inner_->move_to(std::move(executor)));
      return std::unique_ptr<net::Connection>(std::make_unique<Breaking>(std::move(moved), left_));
    }
    void close() override { inner_->close(); }

   private:
    std::unique_ptr<net::Connection> inner_;
    std::size_t left_;
  };

  net::Network& inner_;
  std::size_t n_whole_;
  std::size_t bytes_max_;
  int n_broken_ = 0;
};

TEST(ClusterSim, LoadsToTheEndWhenTheChannelForWeightsBreaks) {
  const Expected expected = expected_case(1);
  for (const std::size_t bytes : {1U, 100'000U, 600'000U}) {
    SCOPED_TRACE(bytes);
    SimCluster cluster({.seed = 8, .n_workers = 1, .workers_have_file = false, .model = kStories});
    // The control connection stays; the second one is the channel for weights.
    BreakingNetwork network(cluster.network().host("home"), 1, bytes);
    const auto opened = cluster.open(&network);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    EXPECT_EQ(network.n_broken(), 1);
    EXPECT_GT(cluster.cluster().sources().fetched, 1'000'000u);
    const auto tokens = cluster.generate(expected.prompt, 5);
    ASSERT_TRUE(tokens.ok());
    EXPECT_TRUE(std::equal(tokens->begin(), tokens->end(), expected.greedy.begin()));
    cluster.close();
  }
}

TEST(ClusterSim, TellsWhatBothEndsOfAllLinksDid) {
  SimCluster cluster({.seed = 2, .n_workers = 2, .n_ubatch = 4, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  ASSERT_TRUE(cluster.logits({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}).ok());  // Three micro-batches.
  cluster.close();
  const std::vector<std::string> names = {"coordinator", "box0:7500", "box1:7500", "coordinator"};
  ASSERT_EQ(cluster.links().size(), 6u);
  for (std::size_t i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    const rpc::LinkStats& link = cluster.links()[i];
    EXPECT_EQ(link.from, names[i / 2]);
    EXPECT_EQ(link.to, names[i / 2 + 1]);
    EXPECT_EQ(link.sends, i % 2 == 0);
    EXPECT_EQ(link.carries, "steps");
    EXPECT_EQ(link.counters.messages, 3u);
    EXPECT_EQ(link.counters.payload_copies, 0u);
    EXPECT_TRUE(link.transport.starts_with("tcp")) << link.transport;
  }
  EXPECT_EQ(cluster.links()[2].counters.bytes, cluster.links()[3].counters.bytes);
}

TEST(ClusterSim, GivesTheSameRunForTheSameSeed) {
  const Expected expected = expected_case(2);
  net::TimePoint ends[2];
  for (net::TimePoint& end : ends) {
    SimCluster cluster({.seed = 11, .n_workers = 2, .model = kStories});
    ASSERT_TRUE(cluster.open().ok());
    ASSERT_TRUE(cluster.generate(expected.prompt, 10).ok());
    end = cluster.loop().now();
  }
  EXPECT_EQ(ends[0], ends[1]);
}

TEST(ClusterSim, SendsOneMessagePerHopAndMicroBatchAndCopiesNoRows) {
  SimCluster cluster({.seed = 2, .n_workers = 2, .n_ubatch = 4, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  ASSERT_TRUE(cluster.logits({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}).ok());  // Three micro-batches.
  EXPECT_EQ(cluster.cluster().executor().sent().messages, 3u);
  EXPECT_EQ(cluster.cluster().executor().received().messages, 3u);
  EXPECT_EQ(cluster.cluster().executor().sent().payload_copies, 0u);
}

TEST(ClusterSim, ReportsABadBatchAndGoesOn) {
  const Expected expected = expected_case(0);
  SimCluster cluster({.seed = 4, .n_workers = 3, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  const auto bad = cluster.logits({1, 100'000});
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(bad.error().message.find("100000"), std::string::npos) << bad.error().message;
  const auto tokens = cluster.generate(expected.prompt, 10);
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_TRUE(std::equal(tokens->begin(), tokens->end(), expected.greedy.begin()));
}

// Every candidate of every row is more than one result message holds: the step is cut finer.
TEST(ClusterSim, CarriesMoreCandidatesThanAMessageHolds) {
  SimCluster cluster({.seed = 14, .n_workers = 2, .n_ubatch = 512, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  const std::vector<TokenId> tokens(400, 7);
  model::StepBatch batch = prompt_step(tokens, 0, 32, model::OutputRequest::Kind::kScore);
  batch.outputs.clear();
  for (std::uint32_t row = 0; row < tokens.size(); ++row) {
    batch.outputs.push_back(
        {.row = row, .kind = model::OutputRequest::Kind::kScore, .target = 7, .n_top = 512});
  }
  const auto result = cluster.step(std::move(batch));
  ASSERT_TRUE(result.ok()) << result.error().message;
  ASSERT_EQ(result->outputs.size(), tokens.size());
  for (std::uint32_t row = 0; row < tokens.size(); ++row) {
    EXPECT_EQ(result->outputs[row].row, row);
    EXPECT_EQ(result->outputs[row].top.size(), 512u);
  }
}

// A slice needs about 5 MiB here, most of it rings and buffers.
TEST(ClusterSim, LoadsASliceThatJustFitsAndRefusesOneThatDoesNot) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  SimCluster fits({.seed = 15, .n_workers = 1, .worker_memory_bytes = 8 * kMiB, .model = kStories});
  const auto opened = fits.open();
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  fits.close();
  ASSERT_TRUE(fits.open().ok());  // What was closed is free again.
  SimCluster tight(
      {.seed = 16, .n_workers = 1, .worker_memory_bytes = 3 * kMiB, .model = kStories});
  const auto refused = tight.open();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(refused.error().message.find("box0"), std::string::npos) << refused.error().message;
  EXPECT_NE(refused.error().message.find("3.0 MiB"), std::string::npos) << refused.error().message;
}

TEST(ClusterSim, NamesTheWorkerThatIsKilledWhileDecoding) {
  for (const std::size_t victim : {0U, 1U, 2U}) {
    SCOPED_TRACE(victim);
    SimCluster cluster({.seed = 6 + victim, .n_workers = 3, .model = kStories});
    ASSERT_TRUE(cluster.open().ok());
    ASSERT_TRUE(cluster.generate({1, 403, 407}, 5).ok());
    const net::TimePoint before = cluster.loop().now();
    cluster.network().kill(SimCluster::worker_name(victim));
    const auto after = cluster.logits({1, 2, 3});
    ASSERT_FALSE(after.ok());
    EXPECT_EQ(after.error().code, ErrorCode::kUnavailable) << after.error().message;
    EXPECT_NE(after.error().message.find(SimCluster::worker_name(victim)), std::string::npos)
        << after.error().message;
    EXPECT_LT(cluster.loop().now() - before, std::chrono::seconds(1));
  }
}

TEST(ClusterSim, NoticesASilentWorkerByItsHeartbeat) {
  SimCluster cluster({.seed = 9, .n_workers = 2, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  cluster.network().silence(SimCluster::worker_name(1));
  const auto after = cluster.logits({1, 2, 3});
  ASSERT_FALSE(after.ok());
  EXPECT_NE(after.error().message.find("box1"), std::string::npos) << after.error().message;
}

TEST(ClusterSim, EndsCleanlyWhenAWorkerIsKilledAtAnyMomentOfLoading) {
  // Kill a worker after each of many delays: every open() ends, with the worker's name or success.
  for (int step = 0; step < 60; ++step) {
    SCOPED_TRACE(step);
    SimCluster cluster({.seed = static_cast<std::uint64_t>(100 + step),
                        .n_workers = 2,
                        .workers_have_file = false,
                        .model = kStories});
    cluster.loop().schedule(cluster.loop().now() + std::chrono::microseconds(100 * step * step),
                            [&] { cluster.network().kill("box1"); });
    const auto opened = cluster.open();
    if (!opened.ok()) {
      EXPECT_NE(opened.error().message.find("box1"), std::string::npos) << opened.error().message;
    }
  }
}

TEST(ClusterSim, SurvivesACoordinatorThatLeavesWithoutAWord) {
  SimCluster cluster({.seed = 12, .n_workers = 2, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  EXPECT_EQ(cluster.worker(0).n_sessions(), 1u);
  cluster.network().kill("home");
  cluster.loop().run_for(std::chrono::seconds(10));
  EXPECT_EQ(cluster.worker(0).n_sessions(), 0u);
  EXPECT_EQ(cluster.worker(1).n_sessions(), 0u);
  ASSERT_TRUE(cluster.open().ok());  // And serves the next one.
}

TEST(ClusterSim, DropsAPeerThatSendsGarbageAndServesTheOthers) {
  const Expected expected = expected_case(0);
  SimCluster cluster({.seed = 13, .n_workers = 2, .model = kStories});
  ASSERT_TRUE(cluster.open().ok());
  const net::Env evil = cluster.network().env("evil");
  const auto attack = [](net::Env env, std::string bytes) -> net::asio::awaitable<bool> {
    net::Endpoint endpoint{.host = "box0", .port = SimCluster::kPort};
    auto connection = co_await env.network->connect(endpoint, std::chrono::seconds(5));
    RECUA_CHECK(connection.ok());
    const auto written = co_await (*connection)->write(as_bytes(bytes));
    RECUA_CHECK(written.ok());
    std::byte reply[1];
    while (true) {  // Until the worker closes, at the latest by its deadline.
      const auto read = co_await (*connection)->read(reply);
      if (!read.ok()) co_return true;
    }
  };
  for (const std::string bytes : {"GET / HTTP/1.1\r\n\r\n", "RC", "\x16\x03\x01\x02",
                                  "RCUA\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"}) {
    EXPECT_TRUE(cluster.loop().run(attack(evil, bytes)));
  }
  const auto tokens = cluster.generate(expected.prompt, 10);
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_TRUE(std::equal(tokens->begin(), tokens->end(), expected.greedy.begin()));
}

}  // namespace
}  // namespace recua
