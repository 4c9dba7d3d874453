// synth writes a model, quantize writes it again: both through real files.
#include "cli/quantize_model.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/mapped_file.h"
#include "base/scratch_folder.h"
#include "cli/synth_model.h"
#include "cli/units.h"
#include "gguf/gguf_writer.h"
#include "quant/dequantize.h"

namespace recua::cli {
namespace {

using gguf::GgufFile;
using quant::DataType;

class QuantizeModelTest : public testing::Test {
 protected:
  [[nodiscard]] std::filesystem::path path(const std::string& name) const { return dir_ / name; }

  /// A synthetic model, written and opened.
  GgufFile synth(const SynthSpec& spec, std::string_view mix, const std::string& name) {
    RECUA_CHECK(check_spec(spec).ok());
    const auto result = write_synth_model(spec, *find_mix(mix), path(name));
    EXPECT_TRUE(result.ok());
    auto file = GgufFile::open(path(name));
    RECUA_CHECK(file.ok());
    return std::move(file).value();
  }

 private:
  ScratchFolder dir_;
};

SynthSpec small_spec() {
  return {.n_layers = 2,
          .hidden_size = 256,
          .ffn_size = 512,
          .n_heads = 4,
          .n_kv_heads = 2,
          .vocab_size = 400,
          .n_ctx = 128};
}

std::vector<float> weights_of(const gguf::TensorInfo& tensor) {
  std::vector<float> out(tensor.n_elements);
  quant::dequantize_row(tensor.type, tensor.data.data(), out.size(), out.data());
  return out;
}

TEST_F(QuantizeModelTest, WritesTheSameModelInOtherTypes) {
  const GgufFile input = synth(small_spec(), "F32", "in.gguf");
  for (const QuantizeMix& mix : quantize_mixes()) {
    SCOPED_TRACE(mix.name);
    const auto plan = plan_types(input, mix, false);
    ASSERT_TRUE(quantize_model(input, plan, mix, path("out.gguf"), 2).ok());
    const auto output = GgufFile::open(path("out.gguf"));
    ASSERT_TRUE(output.ok()) << output.error().message;
    EXPECT_EQ(*output->get_u32(gguf::keys::kFileType), mix.file_type);
    EXPECT_EQ(output->get_str_array(gguf::keys::kTokens)->size(), 400U);
    ASSERT_EQ(output->tensors().size(), input.tensors().size());
    for (std::size_t i = 0; i < plan.size(); ++i) {
      const gguf::TensorInfo& before = input.tensors()[i];
      const gguf::TensorInfo& after = output->tensors()[i];
      EXPECT_EQ(after.name, before.name);
      EXPECT_EQ(after.shape, before.shape);
      EXPECT_EQ(after.type, plan[i].type);
      EXPECT_EQ(after.n_bytes, plan[i].n_bytes());
      const std::vector<float> a = weights_of(before);
      const std::vector<float> b = weights_of(after);
      double error = 0.0;
      double size = 0.0;
      for (std::size_t j = 0; j < a.size(); ++j) {
        error += (a[j] - b[j]) * (a[j] - b[j]);
        size += a[j] * a[j];
      }
      EXPECT_LE(std::sqrt(error / size), 0.3) << after.name;  // Q2_K; src/quant tests each closely.
    }
  }
}

TEST_F(QuantizeModelTest, GivesTheSameFileWithAnyNumberOfThreads) {
  const GgufFile input = synth(small_spec(), "F16", "in.gguf");
  const QuantizeMix mix = *find_mix("Q4_K_M");
  const auto plan = plan_types(input, mix, false);
  std::string first;
  for (const std::size_t n_threads : {1U, 2U, 5U}) {
    ASSERT_TRUE(quantize_model(input, plan, mix, path("out.gguf"), n_threads).ok());
    const auto bytes = read_file(path("out.gguf"), 1 << 26);
    ASSERT_TRUE(bytes.ok());
    if (first.empty()) first = *bytes;
    EXPECT_TRUE(*bytes == first) << n_threads << " threads";
  }
}

TEST_F(QuantizeModelTest, NamesTheWeightThatIsNotANumber) {
  gguf::GgufWriter writer;
  writer.add("general.architecture", "llama");
  writer.add_tensor("blk.0.attn_q.weight", DataType::kF32, std::vector<std::uint64_t>{32, 8});
  std::vector<float> data(256, 1.0F);
  data[32 * 5 + 7] = std::numeric_limits<float>::quiet_NaN();
  data[32 * 7 + 1] = std::numeric_limits<float>::infinity();
  ASSERT_TRUE(writer.begin(path("nan.gguf")).ok());
  ASSERT_TRUE(writer.write(std::as_bytes(std::span(data))).ok());
  ASSERT_TRUE(writer.finish().ok());
  const auto input = GgufFile::open(path("nan.gguf"));
  ASSERT_TRUE(input.ok());
  const QuantizeMix mix = *find_mix("Q8_0");
  const auto result =
      quantize_model(*input, plan_types(*input, mix, false), mix, path("out.gguf"), 2);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find(
                "'blk.0.attn_q.weight' has a weight that is NaN or infinite (row 5, column 7)"),
            std::string::npos)
      << result.error().message;
  EXPECT_FALSE(std::filesystem::exists(path("out.gguf")));
}

TEST_F(QuantizeModelTest, SaysWhichTensorsFallBack) {
  SynthSpec spec = small_spec();
  spec.hidden_size = 96;
  const GgufFile input = synth(spec, "F16", "in.gguf");
  for (const TensorPlan& item : plan_types(input, *find_mix("Q4_K_M"), false)) {
    const bool is_matrix = item.tensor->n_dims > 1;
    EXPECT_EQ(item.fell_back, is_matrix && item.tensor->shape[0] == 96) << item.tensor->name;
  }
}

TEST_F(QuantizeModelTest, SynthIsTheSameForTheSameSeedOnly) {
  SynthSpec spec = small_spec();
  synth(spec, "Q4_0", "a.gguf");
  synth(spec, "Q4_0", "b.gguf");
  spec.seed = 2;
  synth(spec, "Q4_0", "c.gguf");
  const auto a = read_file(path("a.gguf"), 1 << 26);
  EXPECT_TRUE(*a == *read_file(path("b.gguf"), 1 << 26));
  EXPECT_FALSE(*a == *read_file(path("c.gguf"), 1 << 26));
}

TEST_F(QuantizeModelTest, SynthWeightsHaveTheirSizeAndNoDenormals) {
  const GgufFile file = synth(small_spec(), "F32", "m.gguf");
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    double sum_sq = 0.0;
    for (const float v : weights_of(tensor)) {
      ASSERT_TRUE(v == 0.0F || std::isnormal(v)) << tensor.name;
      sum_sq += static_cast<double>(v) * v;
    }
    const double rms = std::sqrt(sum_sq / static_cast<double>(tensor.n_elements));
    EXPECT_GT(rms, tensor.n_dims == 1 ? 0.95 : 0.015) << tensor.name;
    EXPECT_LT(rms, tensor.n_dims == 1 ? 1.05 : 0.15) << tensor.name;
  }
}

TEST_F(QuantizeModelTest, SynthRowsDiffer) {
  SynthSpec spec = small_spec();
  spec.vocab_size = 8000;
  for (const char* mix : {"F16", "Q4_0", "Q4_K_M"}) {
    for (const std::uint32_t hidden_size : {256U, 1024U}) {
      spec.hidden_size = hidden_size;
      const GgufFile file = synth(spec, mix, "m.gguf");
      const gguf::TensorInfo* output = file.find("output.weight");
      ASSERT_NE(output, nullptr);
      const std::size_t row_bytes = output->n_bytes / output->n_rows();
      std::set<std::string_view> rows;
      for (std::size_t i = 0; i < output->n_rows(); ++i) {
        rows.insert(as_text(output->data.subspan(i * row_bytes, row_bytes)));
      }
      EXPECT_EQ(rows.size(), output->n_rows()) << mix;
    }
  }
}

TEST_F(QuantizeModelTest, SynthKnowsEveryArchitecture) {
  for (const char* arch : {"llama", "qwen2", "qwen3", "qwen3moe"}) {
    SynthSpec spec = small_spec();
    spec.arch = arch;
    spec.head_dim = 32;
    spec.tied = true;
    if (spec.arch == "qwen3moe") spec.n_experts = 4;
    const GgufFile file = synth(spec, "Q8_0", fmt::format("{}.gguf", arch));
    EXPECT_EQ(file.find("output.weight"), nullptr);
    EXPECT_EQ(file.find("blk.1.attn_q.bias") != nullptr, spec.arch == "qwen2");
    EXPECT_EQ(file.find("blk.1.attn_k_norm.weight") != nullptr, spec.arch.starts_with("qwen3"));
    EXPECT_EQ(file.find("blk.1.ffn_down_exps.weight") != nullptr, spec.n_experts > 0);
    EXPECT_EQ(file.find("blk.1.attn_q.weight")->shape_text(), "[256, 128]");
  }
}

TEST(SynthSpec, IsCheckedFlagByFlag) {
  const auto error = [](auto change) {
    SynthSpec spec = small_spec();
    change(spec);
    const auto result = check_spec(spec);
    return result.ok() ? std::string() : result.error().message;
  };
  EXPECT_EQ(error([](SynthSpec&) {}), "");
  EXPECT_EQ(error([](SynthSpec& s) { s.arch = "gpt2"; }),
            "--arch is gpt2, must be llama, qwen2, qwen3 or qwen3moe");
  EXPECT_EQ(error([](SynthSpec& s) { s.n_kv_heads = 3; }),
            "--kv-heads is 3, must be a divisor of --heads (4)");
  EXPECT_EQ(error([](SynthSpec& s) { s.n_heads = 6; }),
            "--heads is 6, must be a divisor of --dim (256), or give --head-dim");
  EXPECT_EQ(error([](SynthSpec& s) { s.vocab_size = 259; }),
            "--vocab is 259, must be from 260 to 4194304");
  EXPECT_EQ(error([](SynthSpec& s) { s.head_dim = 33; }),
            "--head-dim is 33, must be even: RoPE turns pairs");
  EXPECT_EQ(error([](SynthSpec& s) { s.n_layers = 0; }), "--layers is 0, must be from 1 to 4096");
  EXPECT_EQ(error([](SynthSpec& s) { s.n_experts = 1; }),
            "--experts-used is 2, must be from 1 to 1");
  EXPECT_EQ(error([](SynthSpec& s) { s.arch = "qwen3moe"; }),
            "--experts is 0, must be at least 1 for --arch qwen3moe");
}

TEST(Units, AreForPeople) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(999), "999 B");
  EXPECT_EQ(human_bytes(1000), "1.0 KB");
  EXPECT_EQ(human_bytes(999'960), "1.0 MB");
  EXPECT_EQ(human_bytes(4'683'073'536), "4.7 GB");
  EXPECT_EQ(human_count(260'032), "260.0 K");
  EXPECT_EQ(human_count(12), "12");
}

}  // namespace
}  // namespace recua::cli
