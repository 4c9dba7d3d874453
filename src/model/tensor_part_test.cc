// Cutting tensors: every element of every type lands where it belongs, and the shares of a model
// cover each of its tensors.
#include "model/tensor_part.h"

#include <cstring>
#include <map>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "kernels/random_weights.h"
#include "model/local_weight_source.h"
#include "model/part_layout.h"
#include "model/test_models.h"
#include "model/weights.h"
#include "quant/dequantize.h"

namespace recua::model {
namespace {

using compute::TensorBytes;

TensorBytes random_tensor(quant::DataType type, std::size_t n_in, std::size_t n_out,
                          std::size_t n_experts, Rng& rng) {
  auto memory = std::make_shared<kernels::RandomWeights>(
      kernels::random_weights(type, n_out * n_experts, n_in, rng));
  return {.name = "t",
          .type = type,
          .n_in = n_in,
          .n_out = n_out,
          .n_experts = n_experts,
          .bytes = memory->bytes,
          .owner = memory};
}

std::vector<float> values(const TensorBytes& tensor) {
  std::vector<float> out(tensor.n_in * tensor.n_out * tensor.n_experts);
  const std::size_t row_bytes = quant::row_bytes(tensor.type, tensor.n_in);
  for (std::size_t r = 0; r < tensor.n_out * tensor.n_experts; ++r) {
    quant::dequantize_row(tensor.type, tensor.bytes.data() + r * row_bytes, tensor.n_in,
                          out.data() + r * tensor.n_in);
  }
  return out;
}

TEST(CutTensor, KeepsEveryElementOfThePart) {
  Rng rng(5);
  for (const quant::DataType type : quant::kAllDataTypes) {
    const std::size_t block = quant::traits(type).block_size;
    for (int i = 0; i < 20; ++i) {
      const std::size_t n_in = block == 1 ? 1 + rng.below(100) : block * (1 + rng.below(4));
      const std::size_t n_out = 1 + rng.below(12);
      const std::size_t n_experts = 1 + rng.below(3);
      const TensorBytes whole = random_tensor(type, n_in, n_out, n_experts, rng);
      const auto range = [&](std::size_t n) {
        const auto begin = static_cast<std::uint32_t>(rng.below(n));
        return Range{begin, begin + 1 + static_cast<std::uint32_t>(rng.below(n - begin))};
      };
      TensorPart part = {
          .name = "t", .n_in = n_in, .n_out = n_out, .n_experts = n_experts, .rows = range(n_out)};
      part.cols = rng.below(2) == 0 ? Range{0, static_cast<std::uint32_t>(n_in)} : range(n_in);
      SCOPED_TRACE(fmt::format("{} [{}, {}, {}] rows {}-{} columns {}-{}", quant::traits(type).name,
                               n_in, n_out, n_experts, part.rows.begin, part.rows.end,
                               part.cols.begin, part.cols.end));
      const auto cut = cut_tensor(whole, part);
      ASSERT_TRUE(cut.ok()) << cut.error().message;
      const Range cols = whole_blocks(part.cols, block);
      EXPECT_LE(cols.begin, part.cols.begin);
      EXPECT_GE(cols.end, part.cols.end);
      EXPECT_LT(part.cols.begin - cols.begin, block);
      ASSERT_EQ(cut->n_in, cols.size());
      ASSERT_EQ(cut->n_out, part.rows.size());
      ASSERT_EQ(cut->n_experts, n_experts);
      EXPECT_EQ(cut->bytes.size(), part_bytes(part, type));
      const std::vector<float> all = values(whole);
      const std::vector<float> got = values(*cut);
      std::size_t at = 0;
      for (std::size_t e = 0; e < n_experts; ++e) {
        for (std::size_t r = part.rows.begin; r < part.rows.end; ++r) {
          for (std::size_t c = cols.begin; c < cols.end; ++c, ++at) {
            // Bits: a random block may hold NaN.
            const float wanted = all[(e * n_out + r) * n_in + c];
            ASSERT_EQ(std::memcmp(&got[at], &wanted, sizeof(float)), 0)
                << e << " " << r << " " << c;
          }
        }
      }
      EXPECT_EQ(at, got.size());
    }
  }
}

// However the whole tensor is cut into chunks: each byte of the part comes once, from its place.
TEST(PartLayout, GivesThePartOutOfChunksOfAnySize) {
  Rng rng(8);
  for (int i = 0; i < 400; ++i) {
    const quant::DataType type = rng.below(2) == 0 ? quant::DataType::kF16 : quant::DataType::kQ4_0;
    const std::size_t block = quant::traits(type).block_size;
    const std::size_t n_in = block * (1 + rng.below(5));
    const std::size_t n_out = 1 + rng.below(9);
    const std::size_t n_experts = 1 + rng.below(3);
    const TensorBytes whole = random_tensor(type, n_in, n_out, n_experts, rng);
    const auto range = [&](std::size_t n) {
      if (rng.below(3) == 0) return Range{0, static_cast<std::uint32_t>(n)};
      const auto begin = static_cast<std::uint32_t>(rng.below(n));
      return Range{begin, begin + 1 + static_cast<std::uint32_t>(rng.below(n - begin))};
    };
    const TensorPart part = {.name = "t",
                             .n_in = n_in,
                             .n_out = n_out,
                             .n_experts = n_experts,
                             .rows = range(n_out),
                             .cols = range(n_in)};
    const std::size_t chunk = 1 + rng.below(whole.bytes.size() + 10);
    SCOPED_TRACE(fmt::format("{} [{}, {}, {}] rows {}-{} columns {}-{} in chunks of {}",
                             quant::traits(type).name, n_in, n_out, n_experts, part.rows.begin,
                             part.rows.end, part.cols.begin, part.cols.end, chunk));
    const PartLayout layout(part, type);
    ASSERT_EQ(layout.bytes(), part_bytes(part, type));
    std::vector<std::byte> got(layout.bytes());
    std::size_t n_got = 0;
    for (std::size_t begin = 0; begin < whole.bytes.size(); begin += chunk) {
      const std::size_t end = std::min(begin + chunk, whole.bytes.size());
      std::size_t n_pieces = 0;
      layout.for_each_piece(begin, end,
                            [&](std::size_t in_whole, std::size_t in_part, std::size_t bytes) {
                              ASSERT_GT(bytes, 0U);
                              ASSERT_GE(in_whole, begin);
                              ASSERT_LE(in_whole + bytes, end);
                              ASSERT_EQ(in_part, n_got);
                              ASSERT_LE(in_part + bytes, got.size());
                              std::memcpy(&got[in_part], &whole.bytes[in_whole], bytes);
                              n_got += bytes;
                              ++n_pieces;
                            });
      ASSERT_EQ(layout.touches(begin, end), n_pieces > 0);
    }
    ASSERT_EQ(n_got, got.size());
    const auto cut = cut_tensor(whole, part);
    ASSERT_TRUE(cut.ok()) << cut.error().message;
    EXPECT_EQ(std::memcmp(got.data(), cut->bytes.data(), got.size()), 0);
  }
}

TEST(PartLayout, HasNothingOfAnEmptyPart) {
  for (const bool no_rows : {true, false}) {
    const TensorPart part = {.name = "t",
                             .n_in = 32,
                             .n_out = 4,
                             .rows = {no_rows ? 4U : 0U, 4},
                             .cols = {no_rows ? 0U : 32U, 32}};
    const PartLayout layout(part, quant::DataType::kF32);
    EXPECT_EQ(layout.bytes(), 0U);
    EXPECT_FALSE(layout.touches(0, 512));
  }
}

TEST(CutTensor, LeavesRowsOfOneMatrixWhereTheyAre) {
  Rng rng(6);
  const TensorBytes whole = random_tensor(quant::DataType::kQ8_0, 64, 10, 1, rng);
  const TensorPart rows = {.name = "t", .n_in = 64, .n_out = 10, .rows = {3, 7}, .cols = {0, 64}};
  const auto cut = cut_tensor(whole, rows);
  ASSERT_TRUE(cut.ok());
  EXPECT_EQ(cut->bytes.data(), whole.bytes.data() + 3 * 68);
  EXPECT_EQ(cut->owner, whole.owner);
  const TensorPart cols = {.name = "t", .n_in = 64, .n_out = 10, .rows = {0, 10}, .cols = {40, 60}};
  const auto copy = cut_tensor(whole, cols);
  ASSERT_TRUE(copy.ok());
  EXPECT_NE(copy->owner, whole.owner) << "a copy must not keep the whole file in memory";
}

TEST(CutTensor, RefusesATensorOfAnotherShapeOrSize) {
  Rng rng(7);
  TensorBytes whole = random_tensor(quant::DataType::kQ4_0, 64, 10, 1, rng);
  TensorPart part = {.name = "t", .n_in = 64, .n_out = 12, .rows = {0, 6}, .cols = {0, 64}};
  const auto refused = [&](const std::string& words) {
    const auto cut = cut_tensor(whole, part);
    ASSERT_FALSE(cut.ok()) << words;
    EXPECT_EQ(cut.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(cut.error().message.find(words), std::string::npos) << cut.error().message;
  };
  refused("tensor t has shape [64, 10]; expected [64, 12]");
  part.n_out = 10;
  whole.bytes = whole.bytes.first(whole.bytes.size() - 1);
  refused("tensor t has 359 bytes; expected 360");
  whole.n_in = part.n_in = 48;
  part.cols.end = 48;
  refused("rows of 48 elements; expected a multiple of 32");
}

/// Notes what is asked for, and how many bytes of it.
class RecordingSource final : public WeightSource {
 public:
  explicit RecordingSource(std::shared_ptr<const gguf::GgufFile> file) : source_(std::move(file)) {}
  [[nodiscard]] bool has(std::string_view name) const override { return source_.has(name); }
  Result<TensorBytes> tensor(std::string_view name) const override { return source_.tensor(name); }
  Result<TensorBytes> part(const TensorPart& part) const override {
    auto out = source_.part(part);
    if (out.ok()) {
      bytes[part.name] += out->bytes.size();
      if (part.has_all_rows() && part.has_all_cols()) whole.insert(part.name);
    }
    return out;
  }

  mutable std::map<std::string, std::size_t> bytes;
  mutable std::set<std::string> whole;

 private:
  LocalWeightSource source_;
};

// What the ranks load is each tensor once, but for what all of them need, what lies in a block
// with another's, and KV heads that two ranks use.
TEST(LoadWeights, GivesEachRankItsPartOnly) {
  const auto device = test_device();
  for (const char* const name :
       {"models/stories260K.gguf", "random/rnd-llama-q4_k.gguf", "random/rnd-llama-q8_0.gguf",
        "random/rnd-qwen2-f16.gguf", "random/rnd-mixtral-f16.gguf",
        "random/rnd-llama-f16-gqa-tied-rope3.gguf"}) {
    SCOPED_TRACE(name);
    const auto file = open_golden(name);
    const auto hp = read_hyperparams(*file);
    ASSERT_TRUE(hp.ok());
    const RecordingSource source(file);
    const auto shares = divide(*hp, std::vector<double>{1, 1});
    ASSERT_TRUE(shares.ok());
    std::size_t reported = 0;
    std::size_t planned = 0;
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      const Slice slice = {.layer_end = hp->n_layers,
                           .n_layers = hp->n_layers,
                           .rank = rank,
                           .n_ranks = 2,
                           .shares = *shares};
      const auto loaded =
          load_weights(*device, *hp, source, slice, [&](std::size_t done, std::size_t total) {
            if (done == total) reported += total;
          });
      ASSERT_TRUE(loaded.ok()) << loaded.error().message;
      const bool tied = file->find("output.weight") == nullptr;
      for (const gguf::TensorInfo& tensor : file->tensors()) {
        if (tensor.name != "rope_freqs.weight") {
          planned += slice_bytes(*hp, slice, tied, tensor);
        }
      }
    }
    std::size_t counted = 0;
    for (const auto& [tensor, bytes] : source.bytes) {
      if (tensor == "rope_freqs.weight") continue;  // Not among the slots.
      counted += bytes;
      SCOPED_TRACE(tensor);
      const auto info = file->tensor(tensor);
      ASSERT_TRUE(info.ok());
      const bool replicated = source.whole.contains(tensor);
      const bool is_norm = tensor.find("norm") != std::string::npos;
      EXPECT_EQ(replicated, is_norm || tensor.find("gate_inp") != std::string::npos);
      if (replicated) {
        EXPECT_EQ(bytes, 2 * (*info)->n_bytes);
      } else {
        const std::size_t rows = (*info)->shape[1] * (*info)->shape[2];
        EXPECT_GE(bytes, (*info)->n_bytes);
        EXPECT_LE(bytes, (*info)->n_bytes + rows * quant::traits((*info)->type).block_bytes);
      }
    }
    EXPECT_EQ(reported, counted);
    EXPECT_EQ(planned, counted) << "a plan would count other bytes than are loaded";
  }
}

TEST(LoadWeights, RefusesAModelOfAnotherShapeBeforeCuttingIt) {
  const auto device = test_device();
  ModelEdits edits;
  edits.tensor = [](TensorEdit& t) {
    if (t.name == "blk.1.ffn_down.weight") t.shape = {172, 65};
    return true;
  };
  const auto model = edited(*open_golden("models/stories260K.gguf"), edits);
  const auto hp = read_hyperparams(*model->file);
  ASSERT_TRUE(hp.ok());
  const LocalWeightSource source(model->file);
  const Slice slice = {.layer_end = 5,
                       .n_layers = 5,
                       .rank = 1,
                       .n_ranks = 2,
                       .shares = divide(*hp, std::vector<double>{1, 1}).value()};
  bool began = false;
  const auto loaded =
      load_weights(*device, *hp, source, slice, [&](std::size_t, std::size_t) { began = true; });
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(loaded.error().message.find("blk.1.ffn_down.weight has shape [172, 65]; expected [172, "
                                        "64]"),
            std::string::npos)
      << loaded.error().message;
  EXPECT_FALSE(began);
}

}  // namespace
}  // namespace recua::model
