// Workers and a coordinator over real sockets, stages on threads of their own: what tests/sim runs
// in one thread, run for the thread sanitizer.
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <random>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/scratch_folder.h"
#include "cluster/coordinator.h"
#include "cluster/worker.h"
#include "compute/cpu/cpu_device.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"
#include "net/verbs/fake_fabric.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;

const fs::path kModels = fs::path(RECUA_GOLDEN_DIR) / "models";

/// What links may use besides their connections.
enum class Links { kTcp, kSharedMemory, kRdma };

class ClusterThreads : public testing::TestWithParam<Links> {
 protected:
  ClusterThreads() : network(loop.get_executor()), offload(2) {
    env.executor = loop.get_executor();
    env.clock = &clock;
    env.network = &network;
    env.random = [this] {
      const std::scoped_lock lock(random_mutex);
      return generator();
    };
    // All in one process: one fake card, which reaches itself.
    fabric.add_device("here", "card", {"127.0.0.1"});
    provider = fabric.provider("here");
    policy.allow_rdma = GetParam() == Links::kRdma;
    policy.provider = provider.get();
    policy.allow_shared_memory = GetParam() == Links::kSharedMemory;
    policy.host_identity = "here";
    auto opened = gguf::GgufFile::open(kModels / "stories260K.gguf");
    RECUA_CHECK(opened.ok());
    file = std::make_shared<const gguf::GgufFile>(std::move(*opened));
  }
  ~ClusterThreads() override {
    stop_workers();
    loop.restart();
    loop.run();  // Until every stage has told its end.
  }

  void start_workers(int n, bool with_file) {
    for (int i = 0; i < n; ++i) {
      auto listener = network.listen({.host = "127.0.0.1", .port = 0});
      RECUA_CHECK(listener.ok());
      WorkerOptions options;
      options.name = "worker" + std::to_string(i);
      if (with_file) options.models_dir = kModels;
      options.cache_dir = scratch / options.name;
      options.n_threads = 2;
      if (GetParam() != Links::kTcp) options.link_policy = &policy;
      const auto make_device = [] { return compute::make_cpu_device({.n_threads = 2}); };
      workers.push_back(std::make_unique<Worker>(env, offload, make_device, options));
      listeners.push_back(std::move(*listener));
      asio::co_spawn(loop, workers.back()->serve(*listeners.back()), asio::detached);
    }
  }
  void stop_workers() {
    for (const auto& worker : workers) worker->stop();
    for (const auto& listener : listeners) listener->close();
  }

  template <class T>
  T run(asio::awaitable<T> coroutine) {
    std::optional<T> out;
    const auto store = [](asio::awaitable<T> inner,
                          std::optional<T>& into) -> asio::awaitable<void> {
      into.emplace(co_await std::move(inner));
    };
    asio::co_spawn(loop, store(std::move(coroutine), out), asio::detached);
    loop.restart();
    while (!out.has_value()) RECUA_CHECK(loop.run_one() > 0);
    return std::move(*out);
  }

  Result<std::unique_ptr<Cluster>> open(std::uint32_t n_ranks = 1) {
    ClusterOptions options;
    options.n_ranks = n_ranks;
    for (const auto& listener : listeners) options.workers.push_back(listener->endpoint());
    options.cache_dir = scratch / "home";
    if (GetParam() != Links::kTcp) options.link_policy = &policy;
    const model::SliceOptions slice_options{.n_ctx = 512,
                                            .n_pages = 16,
                                            .page_tokens = 32,
                                            .n_ubatch = 4,
                                            .k_type = quant::DataType::kF32,
                                            .v_type = quant::DataType::kF32};
    return run(open_cluster(env, offload, file, slice_options, options, {}));
  }

  /// Greedy tokens of the first reference case.
  Result<std::vector<model::TokenId>> generate(Cluster& cluster, const nlohmann::json& expected,
                                               std::size_t n,
                                               const std::function<void()>& after_the_third = {}) {
    std::vector<model::TokenId> out;
    auto next = expected["prompt_ids"].get<std::vector<model::TokenId>>();
    std::uint32_t position = 0;
    for (std::size_t i = 0; i < n; ++i) {
      model::StepBatch batch;
      const auto n_rows = static_cast<std::uint32_t>(next.size());
      model::SequencePart part{.seq = 0, .position = position, .tokens = next};
      for (std::uint32_t page = (position + 31) / 32; page < (position + n_rows + 31) / 32;
           ++page) {
        part.new_pages.push_back(page);
      }
      batch.parts.push_back(std::move(part));
      model::OutputRequest request{.row = n_rows - 1};
      request.sampling.temperature = 0;
      batch.outputs.push_back(request);
      position += n_rows;
      RECUA_ASSIGN_OR_RETURN(const model::StepResult result,
                             run(cluster.executor().step(std::move(batch))));
      out.push_back(result.outputs.at(0).id);
      next = {out.back()};
      if (out.size() == 3 && after_the_third) after_the_third();
    }
    return out;
  }

  static nlohmann::json expected_case() {
    std::ifstream text(kModels / "stories260K.expected.json");
    return nlohmann::json::parse(text)["cases"][0];
  }
  /// What both ends of the links between ranks counted, of a cluster of four workers that was
  /// closed.
  static void expect_exchanges(const Cluster& cluster, std::uint32_t n_ranks) {
    const std::string_view kind = GetParam() == Links::kTcp            ? "tcp"
                                  : GetParam() == Links::kSharedMemory ? "shared memory"
                                                                       : "rdma card/1";
    std::vector<rpc::LinkStats> links = cluster.links();
    std::erase_if(links, [](const rpc::LinkStats& link) { return link.carries != "exchanges"; });
    ASSERT_EQ(links.size(), 4U / n_ranks * n_ranks * (n_ranks - 1) * 2);
    for (std::size_t i = 0; i < links.size(); i += 2) {
      const rpc::LinkStats& sender = links[i];
      const rpc::LinkStats& receiver = links[i + 1];
      EXPECT_TRUE(sender.sends && !receiver.sends);
      EXPECT_EQ(sender.from, receiver.from);
      EXPECT_EQ(sender.to, receiver.to);
      EXPECT_TRUE(sender.transport.starts_with(kind)) << sender.transport;
      EXPECT_TRUE(receiver.transport.starts_with(kind)) << receiver.transport;
      EXPECT_GT(sender.counters.messages, 0U);
      // The last: what rank 0 found, which no other rank needs to end.
      EXPECT_GE(sender.counters.messages, receiver.counters.messages);
      EXPECT_LE(sender.counters.messages, receiver.counters.messages + 1);
      if (sender.counters.messages == receiver.counters.messages) {
        EXPECT_EQ(sender.counters.bytes, receiver.counters.bytes);
      }
      EXPECT_GT(sender.counters.bytes, 20U * 64 * sizeof(float));  // A row for each token at least.
      EXPECT_EQ(sender.counters.payload_copies, 0U);
      if (GetParam() != Links::kTcp) {
        EXPECT_EQ(receiver.counters.payload_copies, 0U);
      }
    }
  }
  static asio::awaitable<bool> close(Cluster& cluster) {
    co_await cluster.close();
    co_return true;
  }

  std::mutex random_mutex;
  std::mt19937_64 generator{1};
  net::verbs::FakeFabric fabric;
  std::unique_ptr<net::verbs::Provider> provider;
  rpc::LinkPolicy policy;
  asio::io_context loop{1};
  net::RealClock clock;
  net::TcpNetwork network;
  net::Env env;
  ThreadOffload offload;
  ScratchFolder scratch;
  std::shared_ptr<const gguf::GgufFile> file;
  std::vector<std::unique_ptr<net::Listener>> listeners;
  std::vector<std::unique_ptr<Worker>> workers;
};

TEST_P(ClusterThreads, GenerateTheExpectedTokensTwice) {
  const nlohmann::json expected = expected_case();
  auto greedy = expected["greedy_ids"].get<std::vector<model::TokenId>>();
  greedy.resize(20);
  start_workers(2, false);  // The first time they fetch, with hashing on other threads.
  for (int i = 0; i < 2; ++i) {
    auto cluster = open();
    ASSERT_TRUE(cluster.ok()) << cluster.error().message;
    const auto tokens = generate(**cluster, expected, greedy.size());
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    EXPECT_EQ(*tokens, greedy);
    EXPECT_TRUE(run(close(**cluster)));
    for (const rpc::LinkStats& link : (*cluster)->links()) {
      const std::string_view wished = GetParam() == Links::kTcp            ? "tcp"
                                      : GetParam() == Links::kSharedMemory ? "shared memory"
                                                                           : "rdma card/1";
      EXPECT_TRUE(link.transport.starts_with(wished)) << link.transport;
    }
  }
}

TEST_P(ClusterThreads, GenerateTheExpectedTokensAsRanks) {
  const nlohmann::json expected = expected_case();
  auto greedy = expected["greedy_ids"].get<std::vector<model::TokenId>>();
  greedy.resize(20);
  start_workers(4, true);
  for (const std::uint32_t n_ranks : {2U, 4U}) {  // Two groups of two, then one of four.
    auto cluster = open(n_ranks);
    ASSERT_TRUE(cluster.ok()) << cluster.error().message;
    const auto tokens = generate(**cluster, expected, greedy.size());
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    EXPECT_EQ(*tokens, greedy);
    EXPECT_TRUE(run(close(**cluster)));
    expect_exchanges(**cluster, n_ranks);
  }
}

TEST_P(ClusterThreads, EndWhenARankLeaves) {
  start_workers(3, true);
  auto cluster = open(3);
  ASSERT_TRUE(cluster.ok()) << cluster.error().message;
  const auto tokens = generate(**cluster, expected_case(), 200, [this] { workers[1]->stop(); });
  ASSERT_FALSE(tokens.ok());
  EXPECT_EQ(tokens.error().code, ErrorCode::kUnavailable) << tokens.error().message;
}

TEST_P(ClusterThreads, RefuseMoreRanksThanHeads) {
  start_workers(9, true);
  const auto refused = open(9);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("1 to 8 ranks work"), std::string::npos)
      << refused.error().message;
  EXPECT_EQ(open(2).error().message, "--tp 2 needs a multiple of 2 workers, not 9");
}

TEST_P(ClusterThreads, EndWhenTheCoordinatorLeavesWithoutAWord) {
  start_workers(3, true);
  auto cluster = open();
  ASSERT_TRUE(cluster.ok()) << cluster.error().message;
  ASSERT_TRUE(generate(**cluster, expected_case(), 3).ok());
  cluster->reset();  // Connections close; the stages end by themselves.
}

TEST_P(ClusterThreads, EndWhileAStepIsUnderWay) {
  start_workers(2, true);
  auto cluster = open();
  ASSERT_TRUE(cluster.ok()) << cluster.error().message;
  model::StepBatch batch;
  model::SequencePart part{.seq = 0, .position = 0, .tokens = std::vector<model::TokenId>(400, 7)};
  for (model::PageId page = 0; page < 13; ++page) part.new_pages.push_back(page);
  batch.parts.push_back(std::move(part));
  batch.outputs.push_back({.row = 399});
  const auto begin_step = [](RemoteExecutor& executor,
                             model::StepBatch step) -> asio::awaitable<void> {
    model::StepBatch next;
    next.parts.push_back({.seq = 0, .position = 400, .tokens = {7}});
    next.outputs.push_back({.row = 0});
    auto result = co_await executor.step(std::move(step));
    // A machine may be so fast that it was over before the workers were.
    if (result.ok()) result = co_await executor.step(std::move(next));
    EXPECT_FALSE(result.ok());
  };
  asio::co_spawn(loop, begin_step((*cluster)->executor(), std::move(batch)), asio::detached);
  for (int i = 0; i < 3; ++i) loop.run_one();
  stop_workers();
  const auto after = generate(**cluster, expected_case(), 1);
  EXPECT_FALSE(after.ok());
}

INSTANTIATE_TEST_SUITE_P(Over, ClusterThreads,
                         testing::Values(Links::kTcp, Links::kSharedMemory, Links::kRdma),
                         [](const testing::TestParamInfo<Links>& each) {
                           return each.param == Links::kTcp            ? "Tcp"
                                  : each.param == Links::kSharedMemory ? "SharedMemory"
                                                                       : "Rdma";
                         });

}  // namespace
}  // namespace recua::cluster
