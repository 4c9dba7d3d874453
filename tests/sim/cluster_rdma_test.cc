// The cluster over a fake RDMA fabric, in one thread on a virtual clock: the same tokens, no
// copies, and the same tokens again when cards fail while it generates.
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "sim_cluster.h"

namespace recua {
namespace {

using model::TokenId;

const std::filesystem::path kModels = std::filesystem::path(RECUA_GOLDEN_DIR) / "models";
const std::filesystem::path kStories = kModels / "stories260K.gguf";

struct Expected {
  std::vector<TokenId> prompt;
  std::vector<TokenId> greedy;
};

Expected expected_case(std::size_t n_tokens) {
  std::ifstream file(kModels / "stories260K.expected.json");
  const auto json = nlohmann::json::parse(file)["cases"][0];
  Expected out{json["prompt_ids"].get<std::vector<TokenId>>(),
               json["greedy_ids"].get<std::vector<TokenId>>()};
  out.greedy.resize(n_tokens);
  return out;
}

TEST(ClusterOverRdma, GeneratesTheExpectedTokensAndCopiesNothing) {
  const Expected expected = expected_case(50);
  SimCluster cluster(
      {.seed = 4, .n_workers = 2, .workers_have_file = false, .rdma = true, .model = kStories});
  const auto opened = cluster.open();
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const auto tokens = cluster.generate(expected.prompt, 50);
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(*tokens, expected.greedy);
  cluster.close();
  ASSERT_EQ(cluster.links().size(), 10u);  // Three for steps and two for weights, both ends.
  for (const rpc::LinkStats& link : cluster.links()) {
    SCOPED_TRACE(link.from + "->" + link.to + " " + link.carries);
    EXPECT_TRUE(link.transport.starts_with("rdma card_")) << link.transport;
    EXPECT_EQ(link.counters.payload_copies, 0u);
    EXPECT_EQ(link.counters.failovers, 0u);
    EXPECT_EQ(link.counters.resent, 0u);
    if (link.carries == "steps") {
      EXPECT_EQ(link.counters.messages, cluster.links()[0].counters.messages);
    }
  }
  cluster.loop().run_for(std::chrono::seconds(1));
  EXPECT_EQ(cluster.fabric().counts(), net::verbs::FakeCounts{});
}

TEST(ClusterOverRdma, GoesOnOverTcpWhileACardIsDownAndUsesItAgain) {
  const Expected expected = expected_case(90);
  for (const std::string card : {"card_home", "card_box0", "card_box1"}) {
    SCOPED_TRACE(card);
    SimCluster cluster({.seed = 9, .n_workers = 2, .rdma = true, .model = kStories});
    ASSERT_TRUE(cluster.open().ok());
    const auto tokens = cluster.generate(expected.prompt, 90, [&](int i) {
      if (i == 20) cluster.fabric().set_port_up(card, false);
      if (i == 50) cluster.fabric().set_port_up(card, true);
      if (i == 60) cluster.loop().run_for(std::chrono::minutes(2));  // Time to try again.
    });
    ASSERT_TRUE(tokens.ok()) << tokens.error().message;
    EXPECT_EQ(*tokens, expected.greedy);
    cluster.close();
    std::uint64_t n_failovers = 0;
    for (const rpc::LinkStats& link : cluster.links()) {
      n_failovers += link.counters.failovers;
      EXPECT_TRUE(link.transport.starts_with("rdma card_")) << link.from << ": " << link.transport;
    }
    EXPECT_GE(n_failovers, 2u);
  }
}

TEST(ClusterOverRdma, SaysThatAWorkerHasNoCard) {
  const Expected expected = expected_case(5);
  SimCluster cluster({.seed = 9, .n_workers = 2, .rdma = true, .model = kStories});
  cluster.fabric().remove_device("card_box1");
  ASSERT_TRUE(cluster.open().ok());
  const auto tokens = cluster.generate(expected.prompt, 5);
  ASSERT_TRUE(tokens.ok()) << tokens.error().message;
  EXPECT_EQ(*tokens, expected.greedy);
  cluster.close();
  for (const rpc::LinkStats& link : cluster.links()) {
    const bool without = link.from == "box1:7500" || link.to == "box1:7500";
    EXPECT_EQ(link.transport.starts_with("tcp"), without) << link.transport;
    if (without && link.sends) {
      EXPECT_NE(link.transport.find("because"), std::string::npos) << link.transport;
    }
  }
}

}  // namespace
}  // namespace recua
