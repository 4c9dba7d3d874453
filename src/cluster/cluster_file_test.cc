#include "cluster/cluster_file.h"

#include <gtest/gtest.h>

#include "cluster/model_shape.h"

namespace recua::cluster {
namespace {

constexpr const char* kCluster = R"({
  "machines": [
    {"name": "box", "count": 3, "memory_gib": 16, "memory_gb_per_s": 50, "matmul_gmac_per_s": 400,
     "types": {"Q4_K": {"matmul_gmac_per_s": 500, "decode_gmac_per_s": 80}}, "threads": 8},
    {"name": "big", "memory_gib": 128, "memory_gb_per_s": 250, "matmul_gmac_per_s": 20000,
     "operator_us": 5}
  ],
  "links": [
    {"between": ["box", "box"], "transports": [
      {"transport": "tcp", "latency_us": 30, "gbit_per_s": 10},
      {"transport": "rdma", "latency_us": 3, "gbit_per_s": 100}]}
  ],
  "default_link": {"transports": [{"transport": "tcp", "latency_us": 60, "gbit_per_s": 1}]}
})";

std::string message(std::string text, const std::string& old_text, const std::string& new_text) {
  const std::size_t at = text.find(old_text);
  EXPECT_NE(at, std::string::npos) << old_text;
  text.replace(at, old_text.size(), new_text);
  const auto cluster = parse_cluster(text, "c.json");
  if (cluster.ok()) return "fine";
  EXPECT_EQ(cluster.error().code, ErrorCode::kInvalidArgument);
  return cluster.error().message;
}

TEST(ClusterFile, ReadsMachinesAndLinks) {
  const auto cluster = parse_cluster(kCluster, "c.json");
  ASSERT_TRUE(cluster.ok()) << cluster.error().message;
  ASSERT_EQ(cluster->machines.size(), 4u);
  EXPECT_EQ(cluster->machines[2].name, "box-2");
  EXPECT_EQ(cluster->machines[3].name, "big");
  EXPECT_EQ(cluster->machines[0].memory_bytes, std::uint64_t{16} << 30);
  EXPECT_EQ(cluster->machines[0].speed.by_type.at(0).decode_macs_per_second, 80e9);
  EXPECT_DOUBLE_EQ(cluster->machines[3].speed.operator_seconds, 5e-6);
  EXPECT_EQ(cluster->link(0, 1).transport, LinkTransport::kRdma);
  EXPECT_DOUBLE_EQ(cluster->link(0, 1).bytes_per_second, 12.5e9);
  EXPECT_DOUBLE_EQ(cluster->link(3, 0).latency_seconds, 60e-6);
  EXPECT_EQ(first_machines(*cluster, 2).machines.size(), 2u);
}

TEST(ClusterFile, UsesOnlyTransportsThatAreAllowed) {
  const LinkTransport tcp[] = {LinkTransport::kTcp};
  const auto cluster = parse_cluster(kCluster, "c.json", tcp);
  ASSERT_TRUE(cluster.ok());
  EXPECT_EQ(cluster->link(0, 1).transport, LinkTransport::kTcp);
  const LinkTransport rdma[] = {LinkTransport::kRdma};
  EXPECT_NE(parse_cluster(kCluster, "c.json", rdma).error().message.find("default_link.transports"),
            std::string::npos);
}

TEST(ClusterFile, NamesThePlaceOfWhatIsWrong) {
  const auto wrong = [](const char* old_text, const char* new_text) {
    return message(kCluster, old_text, new_text);
  };
  EXPECT_EQ(wrong("\"count\": 3", "\"count\": 0"),
            "c.json: machines[0].count is 0, need a whole number from 1 to 10000");
  EXPECT_EQ(wrong("\"memory_gib\": 128, ", ""), "c.json: machines[1].memory_gib is missing");
  EXPECT_NE(wrong("\"memory_gib\": 128", "\"memory_gib\": \"much\"")
                .find("machines[1].memory_gib is \"much\", need a number"),
            std::string::npos);
  EXPECT_NE(wrong("\"threads\": 8", "\"thraeds\": 8").find("machines[0].thraeds is not a field"),
            std::string::npos);
  EXPECT_NE(wrong("\"latency_us\": 3,", "\"latency_us\": -3,")
                .find("links[0].transports[1].latency_us is -3"),
            std::string::npos);
  EXPECT_NE(wrong("[\"box\", \"box\"]", "[\"box\", \"bxo\"]").find("names \"bxo\""),
            std::string::npos);
  EXPECT_NE(wrong("\"rdma\"", "\"roce\"").find("need shm, rdma or tcp"), std::string::npos);
  EXPECT_NE(wrong("Q4_K", "Q9").find("types.Q9 is not a type"), std::string::npos);
  EXPECT_NE(wrong("\"big\"", "\"box\"").find("for the second time"), std::string::npos);
  EXPECT_NE(wrong("\"default_link\"", "\"links2\"").find("does not tell of"), std::string::npos);
  EXPECT_NE(wrong("\"count\": 3", "\"count\": 3, \"count\": 4").find("occurs twice"),
            std::string::npos);
  EXPECT_NE(wrong("\"count\": 3", "\"count\" 3").find("line 3"), std::string::npos);
  EXPECT_NE(wrong("\"count\": 3", "\"count\": 10000").find("more than 10000 machines"),
            std::string::npos);
}

TEST(ClusterFile, SurvivesWhateverIsCutOff) {
  const std::string text = kCluster;
  for (std::size_t n = 0; n < text.size(); ++n) {
    EXPECT_FALSE(parse_cluster(std::string_view(text).substr(0, n), "c.json").ok());
  }
  EXPECT_FALSE(parse_cluster(std::string(100000, '['), "c.json").ok());
  EXPECT_FALSE(parse_cluster("[]", "c.json").ok());
  EXPECT_FALSE(parse_cluster("{}", "c.json").ok());
}

constexpr const char* kModel = R"({"name": "70B", "n_layers": 80, "hidden_size": 8192,
  "n_heads": 64, "n_kv_heads": 8, "ffn_size": 28672, "vocab_size": 128256, "type": "Q4_K",
  "output_type": "Q6_K"})";

TEST(ModelFile, CountsTheWeightsOfADescribedModel) {
  const auto model =
      parse_model_shape(kModel, "m.json", quant::DataType::kF16, quant::DataType::kF16);
  ASSERT_TRUE(model.ok()) << model.error().message;
  EXPECT_EQ(model->n_layers(), 80u);
  EXPECT_EQ(model->head_dim, 128u);
  EXPECT_NEAR(static_cast<double>(model->n_weights()), 70.6e9, 0.1e9);
  EXPECT_EQ(model->kv_token_bytes, 2u * 8 * 128 * 2);
  EXPECT_NEAR(static_cast<double>(model->bytes()) / static_cast<double>(model->n_weights()), 0.568,
              0.01);
}

TEST(ModelFile, NamesThePlaceOfWhatIsWrong) {
  const auto wrong = [](const std::string& old_text, const std::string& new_text) {
    std::string text = kModel;
    text.replace(text.find(old_text), old_text.size(), new_text);
    const auto model =
        parse_model_shape(text, "m.json", quant::DataType::kF16, quant::DataType::kF16);
    return model.ok() ? "fine" : model.error().message;
  };
  EXPECT_NE(wrong("\"n_kv_heads\": 8", "\"n_kv_heads\": 7").find("a divisor of n_heads, 64"),
            std::string::npos);
  EXPECT_NE(wrong("\"Q4_K\"", "\"Q4_X\"").find("m.json: type is \"Q4_X\""), std::string::npos);
  EXPECT_NE(wrong("\"n_layers\": 80", "\"n_layers\": 80000").find("n_layers is 80000"),
            std::string::npos);
}

}  // namespace
}  // namespace recua::cluster
