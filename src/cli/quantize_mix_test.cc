#include "cli/quantize_mix.h"

#include <map>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace recua::cli {
namespace {

using quant::DataType;

MixTensor matrix(std::string_view name, std::uint64_t row = 4096) {
  return {.name = name, .n_dims = 2, .row = row};
}

DataType type_in(std::string_view mix, const MixModel& model, const MixTensor& tensor) {
  return mixed_type(*find_mix(mix), model, tensor, false);
}

/// How many of a 32-layer model's tensors of one kind get each type.
std::map<DataType, int> census(std::string_view mix, std::string_view kind) {
  std::map<DataType, int> out;
  for (int layer = 0; layer < 32; ++layer) {
    const std::string name = fmt::format("blk.{}.{}.weight", layer, kind);
    ++out[type_in(mix, {.n_layers = 32, .n_heads = 32, .n_kv_heads = 8}, matrix(name))];
  }
  return out;
}

TEST(QuantizeMix, IsFoundInAnyCase) {
  EXPECT_EQ(find_mix("q4_k_m")->name, "Q4_K_M");
  EXPECT_EQ(find_mix("Q5_K")->name, "Q5_K_M");
  EXPECT_EQ(find_mix("bf16")->base, DataType::kBF16);
  EXPECT_FALSE(find_mix("Q7_0").has_value());
  EXPECT_FALSE(find_mix("").has_value());
}

TEST(QuantizeMix, LeavesVectorsNormsAndRoutersAlone) {
  EXPECT_TRUE(mix_applies(matrix("blk.0.attn_q.weight")));
  EXPECT_TRUE(mix_applies(matrix("token_embd.weight")));
  EXPECT_TRUE(mix_applies({.name = "blk.0.ffn_up_exps.weight", .n_dims = 3, .row = 64}));
  EXPECT_FALSE(mix_applies(matrix("blk.0.ffn_gate_inp.weight")));
  EXPECT_FALSE(mix_applies(matrix("blk.0.attn_q_norm.weight")));
  EXPECT_FALSE(mix_applies({.name = "output_norm.weight", .n_dims = 1, .row = 64}));
  EXPECT_FALSE(mix_applies({.name = "rope_freqs.weight", .n_dims = 1, .row = 64}));
  EXPECT_FALSE(mix_applies(matrix("blk.0.attn_q.bias")));
}

// The counts of a published Q4_K_M of a 32-layer Llama: half of the values and down projections in
// Q6_K (4 + 4 at the ends, 8 of the 24 between).
TEST(QuantizeMix, GivesTheMiddleMixesMoreBitsWhereItCounts) {
  EXPECT_EQ(census("Q4_K_M", "attn_v"),
            (std::map<DataType, int>{{DataType::kQ4_K, 16}, {DataType::kQ6_K, 16}}));
  EXPECT_EQ(census("Q4_K_M", "ffn_down"),
            (std::map<DataType, int>{{DataType::kQ4_K, 16}, {DataType::kQ6_K, 16}}));
  EXPECT_EQ(census("Q4_K_M", "attn_q"), (std::map<DataType, int>{{DataType::kQ4_K, 32}}));
  EXPECT_EQ(census("Q5_K_M", "attn_v"),
            (std::map<DataType, int>{{DataType::kQ5_K, 16}, {DataType::kQ6_K, 16}}));
  EXPECT_EQ(census("Q4_K_S", "attn_v"),
            (std::map<DataType, int>{{DataType::kQ4_K, 28}, {DataType::kQ5_K, 4}}));
  EXPECT_EQ(census("Q4_K_S", "ffn_down"),
            (std::map<DataType, int>{{DataType::kQ4_K, 28}, {DataType::kQ5_K, 4}}));
  EXPECT_EQ(census("Q3_K_M", "attn_v"),
            (std::map<DataType, int>{{DataType::kQ4_K, 30}, {DataType::kQ5_K, 2}}));
  EXPECT_EQ(census("Q3_K_M", "ffn_down"),
            (std::map<DataType, int>{{DataType::kQ4_K, 30}, {DataType::kQ5_K, 2}}));
  EXPECT_EQ(census("Q3_K_L", "attn_output"), (std::map<DataType, int>{{DataType::kQ5_K, 32}}));
  EXPECT_EQ(census("Q3_K_S", "ffn_down"), (std::map<DataType, int>{{DataType::kQ3_K, 32}}));
  EXPECT_EQ(census("Q2_K", "attn_v"), (std::map<DataType, int>{{DataType::kQ4_K, 32}}));
  EXPECT_EQ(census("Q2_K", "ffn_down"), (std::map<DataType, int>{{DataType::kQ3_K, 32}}));
  EXPECT_EQ(census("Q6_K", "ffn_down"), (std::map<DataType, int>{{DataType::kQ6_K, 32}}));
  EXPECT_EQ(census("Q4_0", "ffn_down"), (std::map<DataType, int>{{DataType::kQ4_0, 32}}));
}

TEST(QuantizeMix, KeepsTheOutputInSixBits) {
  const MixModel untied{.n_layers = 32};
  const MixModel tied{.n_layers = 32, .tied = true};
  EXPECT_EQ(type_in("Q4_0", untied, matrix("output.weight")), DataType::kQ6_K);
  EXPECT_EQ(type_in("Q4_0", untied, matrix("token_embd.weight")), DataType::kQ4_0);
  EXPECT_EQ(type_in("Q4_K_M", tied, matrix("token_embd.weight")), DataType::kQ6_K);
  EXPECT_EQ(type_in("Q8_0", tied, matrix("token_embd.weight")), DataType::kQ8_0);
  EXPECT_EQ(type_in("Q4_K_M", untied, matrix("output.weight", 896)), DataType::kQ8_0);
  EXPECT_EQ(type_in("F16", untied, matrix("output.weight")), DataType::kF16);
}

TEST(QuantizeMix, FallsBackWhereRowsAreNoMultipleOf256) {
  const MixModel model{.n_layers = 32};
  const auto fallback = [&](std::string_view mix, std::uint64_t row) {
    return type_in(mix, model, matrix("blk.9.attn_q.weight", row));
  };
  EXPECT_EQ(fallback("Q4_K_M", 896), DataType::kQ5_0);
  EXPECT_EQ(fallback("Q5_K_M", 896), DataType::kQ5_1);
  EXPECT_EQ(fallback("Q6_K", 896), DataType::kQ8_0);
  EXPECT_EQ(fallback("Q3_K_S", 896), DataType::kQ4_0);
  EXPECT_EQ(fallback("Q2_K", 896), DataType::kQ4_0);
  EXPECT_EQ(fallback("Q4_0", 896), DataType::kQ4_0);
  EXPECT_EQ(fallback("IQ4_XS", 896), DataType::kIQ4_NL);
  EXPECT_EQ(fallback("MXFP4", 896), DataType::kMXFP4);
  EXPECT_EQ(fallback("Q4_0", 172), DataType::kF16);
  EXPECT_EQ(fallback("Q4_K_M", 172), DataType::kF16);
  EXPECT_EQ(fallback("F32", 173), DataType::kF32);
}

TEST(QuantizeMix, SparesTheSharedTensorsOfEightExperts) {
  const MixModel mixtral{.n_layers = 32, .n_heads = 32, .n_kv_heads = 8, .n_experts = 8};
  EXPECT_EQ(type_in("Q4_K_M", mixtral, matrix("blk.5.attn_v.weight")), DataType::kQ8_0);
  EXPECT_EQ(type_in("Q4_K_M", mixtral, matrix("blk.5.attn_k.weight")), DataType::kQ8_0);
  EXPECT_EQ(type_in("Q4_K_M", mixtral, matrix("blk.5.attn_output.weight")), DataType::kQ5_K);
  EXPECT_EQ(type_in("Q4_K_M", mixtral, matrix("blk.0.ffn_down_exps.weight")), DataType::kQ6_K);
}

TEST(QuantizeMix, PureHasNoExceptions) {
  const MixModel model{.n_layers = 32};
  EXPECT_EQ(mixed_type(*find_mix("Q4_K_M"), model, matrix("output.weight"), true), DataType::kQ4_K);
  EXPECT_EQ(mixed_type(*find_mix("Q4_K_M"), model, matrix("output.weight", 64), true),
            DataType::kQ5_0);
}

}  // namespace
}  // namespace recua::cli
