// Adapters at run time against the same adapters merged into the weights.
#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/half.h"
#include "base/random.h"
#include "base/scratch_folder.h"
#include "model/merge_lora.h"
#include "model/test_group.h"
#include "model/test_logits.h"
#include "model/test_models.h"

namespace recua::model {
namespace {

const char* const kRandom = "random/rnd-llama-f32.gguf";
const char* const kStories = "models/stories260K.gguf";  // 8 heads, 4 KV heads, 172 columns.

struct AdapterTensor {
  std::string name;
  std::vector<std::uint64_t> shape;  // Fastest first.
  std::vector<float> numbers;
};

struct TestAdapter {
  std::vector<AdapterTensor> tensors = {};
  std::string type = "adapter";
  std::string adapter_type = "lora";
  std::string architecture = "llama";
  std::optional<float> alpha = 8.0F;
};

std::vector<float> random_numbers(Rng& rng, std::size_t n, double deviation) {
  std::vector<float> out(n);
  for (float& number : out) number = static_cast<float>(deviation * rng.normal());
  return out;
}

/// Pairs for every matrix that can be adapted, of ranks that differ, large enough to matter.
TestAdapter adapter_for(const gguf::GgufFile& model) {
  TestAdapter out;
  Rng rng(1);
  std::uint64_t rank = 1;
  for (const gguf::TensorInfo& tensor : model.tensors()) {
    if (!tensor.name.starts_with("blk.") || tensor.n_dims != 2) continue;
    const std::uint64_t n_in = tensor.shape[0];
    const std::uint64_t n_out = tensor.shape[1];
    const std::string name(tensor.name);
    out.tensors.push_back({name + ".lora_a", {n_in, rank}, random_numbers(rng, n_in * rank, 0.1)});
    out.tensors.push_back(
        {name + ".lora_b", {rank, n_out}, random_numbers(rng, rank * n_out, 0.1)});
    rank = rank % 9 + 1;
  }
  EXPECT_GE(out.tensors.size(), 14u);
  return out;
}

void write(const TestAdapter& adapter, const std::filesystem::path& path) {
  gguf::GgufWriter writer;
  writer.add("general.type", std::string_view(adapter.type));
  writer.add("adapter.type", std::string_view(adapter.adapter_type));
  writer.add("general.architecture", std::string_view(adapter.architecture));
  if (adapter.alpha) writer.add("adapter.lora.alpha", *adapter.alpha);
  for (const AdapterTensor& tensor : adapter.tensors)
    writer.add_tensor(tensor.name, quant::DataType::kF32, tensor.shape);
  ASSERT_TRUE(writer.begin(path).ok());
  for (const AdapterTensor& tensor : adapter.tensors)
    ASSERT_TRUE(writer.write(std::as_bytes(std::span(tensor.numbers))).ok());
  ASSERT_TRUE(writer.finish().ok());
}

/// The model with W + factor * B A instead of each W, summed in double.
std::shared_ptr<const EditedModel> merged(const gguf::GgufFile& model, const TestAdapter& adapter,
                                          double scale) {
  const auto copy = std::const_pointer_cast<EditedModel>(edited(model, {}));
  for (std::size_t i = 0; i < adapter.tensors.size(); i += 2) {
    const AdapterTensor& a = adapter.tensors[i];
    const AdapterTensor& b = adapter.tensors[i + 1];
    const std::size_t rank = a.shape[1];
    const std::size_t n_in = a.shape[0];
    const double alpha = adapter.alpha.value_or(0.0F);
    const double factor = alpha == 0.0 ? scale : scale * alpha / static_cast<double>(rank);
    const gguf::TensorInfo* info =
        copy->file->find(std::string_view(a.name).substr(0, a.name.size() - kLoraA.size()));
    EXPECT_EQ(info->type, quant::DataType::kF32);
    auto* const w = reinterpret_cast<float*>(copy->bytes.data() + info->offset);
    for (std::size_t o = 0; o < b.shape[1]; ++o) {
      for (std::size_t k = 0; k < n_in; ++k) {
        double sum = w[o * n_in + k];
        for (std::size_t r = 0; r < rank; ++r)
          sum += factor * b.numbers[o * rank + r] * a.numbers[r * n_in + k];
        w[o * n_in + k] = static_cast<float>(sum);
      }
    }
  }
  return copy;
}

class LoraTest : public ::testing::Test {
 protected:
  Result<std::shared_ptr<const gguf::GgufFile>> with_adapter(const std::string& model,
                                                             const TestAdapter& adapter,
                                                             float scale) {
    write(adapter, path_);
    auto file = gguf::GgufFile::open(std::string(RECUA_GOLDEN_DIR) + "/" + model);
    EXPECT_TRUE(file.ok());
    const auto hp = read_hyperparams(*file);
    EXPECT_TRUE(hp.ok());
    RECUA_RETURN_IF_ERROR(add_lora(*file, *hp, path_, scale));
    return std::make_shared<const gguf::GgufFile>(std::move(file).value());
  }
  std::shared_ptr<const gguf::GgufFile> must_adapt(const std::string& model,
                                                   const TestAdapter& adapter, float scale) {
    auto file = with_adapter(model, adapter, scale);
    EXPECT_TRUE(file.ok()) << file.error().message;
    return std::move(file).value();
  }
  void expect_error(const TestAdapter& adapter, ErrorCode code, std::string_view says,
                    const std::string& model = kRandom) {
    const auto file = with_adapter(model, adapter, 1.0F);
    ASSERT_FALSE(file.ok()) << says;
    EXPECT_EQ(file.error().code, code) << file.error().message;
    EXPECT_NE(file.error().message.find(says), std::string::npos) << file.error().message;
    EXPECT_NE(file.error().message.find("adapter.gguf"), std::string::npos);
  }

  ScratchFolder folder_;
  std::filesystem::path path_ = folder_ / "adapter.gguf";
  std::vector<TokenId> tokens_ = {1, 5, 9, 200, 13, 77, 3, 8, 21, 34, 55, 89, 144, 233};
};

double worst_difference(const std::vector<std::vector<float>>& got,
                        const std::vector<std::vector<float>>& wanted) {
  double worst = 0.0;
  EXPECT_EQ(got.size(), wanted.size());
  for (std::size_t row = 0; row < wanted.size(); ++row)
    worst = std::max(worst, relative_difference(got[row], wanted[row]));
  return worst;
}

// W x + B (A x) and (W + B A) x differ by the rounding of sums of a few hundred numbers.
TEST_F(LoraTest, GivesTheLogitsOfMergedWeights) {
  for (const char* name : {kRandom, kStories}) {
    SCOPED_TRACE(name);
    const auto model = open_golden(name);
    const TestAdapter adapter = adapter_for(*model);
    const auto plain = unsplit_logits(model, tokens_);
    for (const float scale : {1.0F, 0.5F, -2.0F}) {
      const auto got = unsplit_logits(must_adapt(name, adapter, scale), tokens_);
      const auto copy = merged(*model, adapter, scale);
      const auto wanted = unsplit_logits(copy->file, tokens_);
      EXPECT_LE(worst_difference(got, wanted), 1e-5) << scale;
      EXPECT_GT(worst_difference(got, plain), 1e-2) << scale;  // It does something.
    }
    const auto nothing = unsplit_logits(must_adapt(name, adapter, 0.0F), tokens_);
    EXPECT_EQ(worst_difference(nothing, plain), 0.0);
  }
}

// What write_merged() writes, on weights in F32, agrees with the adapter at run time within 1e-4.
TEST_F(LoraTest, IsWrittenIntoTheWeights) {
  for (const char* name : {kRandom, kStories}) {
    SCOPED_TRACE(name);
    const auto model = open_golden(name);
    const auto adapted = must_adapt(name, adapter_for(*model), 0.75F);
    const auto result = write_merged(*adapted, folder_ / "merged.gguf", 2);
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_GE(result->n_merged, 7u);
    auto opened = gguf::GgufFile::open(folder_ / "merged.gguf");
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    const auto merged = std::make_shared<const gguf::GgufFile>(std::move(opened).value());
    EXPECT_FALSE(has_lora(*merged));
    EXPECT_EQ(merged->tensors().size(), model->tensors().size());
    EXPECT_EQ(merged->n_shards(), 1u);
    const auto got = unsplit_logits(merged, tokens_);
    const auto wanted = unsplit_logits(adapted, tokens_);
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t row = 0; row < got.size(); ++row) {
      for (std::size_t i = 0; i < got[row].size(); ++i)
        ASSERT_NEAR(got[row][i], wanted[row][i], 1e-4);
    }
    EXPECT_GT(worst_difference(got, unsplit_logits(model, tokens_)), 1e-2);
  }
}

TEST_F(LoraTest, TakesTheScaleAloneWithoutAlpha) {
  const auto model = open_golden(kRandom);
  TestAdapter adapter = adapter_for(*model);
  for (const std::optional<float> alpha : {std::optional<float>(), std::optional<float>(0.0F)}) {
    adapter.alpha = alpha;
    const auto copy = merged(*model, adapter, 0.75);
    EXPECT_LE(worst_difference(unsplit_logits(must_adapt(kRandom, adapter, 0.75F), tokens_),
                               unsplit_logits(copy->file, tokens_)),
              1e-5);
  }
}

TEST_F(LoraTest, AdaptsSomeMatricesAndLeavesTheOthers) {
  const auto model = open_golden(kRandom);
  TestAdapter adapter = adapter_for(*model);
  std::erase_if(adapter.tensors, [](const AdapterTensor& tensor) {
    return !tensor.name.starts_with("blk.0.attn_v.") && !tensor.name.starts_with("blk.0.ffn_up.");
  });
  ASSERT_EQ(adapter.tensors.size(), 4u);
  const auto copy = merged(*model, adapter, 1.0);
  EXPECT_LE(worst_difference(unsplit_logits(must_adapt(kRandom, adapter, 1.0F), tokens_),
                             unsplit_logits(copy->file, tokens_)),
            1e-5);
}

// Query heads, KV heads and columns of the feed-forward are cut, the last within blocks.
TEST_F(LoraTest, IsDividedAmongRanksAndLayersLikeTheWeights) {
  const auto model = must_adapt(kStories, adapter_for(*open_golden(kStories)), 1.0F);
  const auto wanted = unsplit_logits(model, tokens_);
  for (const Speeds& speeds : {Speeds{1, 1}, Speeds{1, 3, 1}, Speeds(8, 1.0)}) {
    SCOPED_TRACE(speeds.size());
    SplitModel split(model, shares_of(*model, speeds), {}, exact_options(512));
    TestSequence sequence;
    const auto result = split.run(prompt_with_logits(sequence, tokens_));
    ASSERT_TRUE(result.ok()) << result.error().message;
    std::vector<std::vector<float>> got;
    for (const StepOutput& output : result->outputs) got.push_back(output.logits);
    EXPECT_LE(worst_difference(got, wanted), 1e-5);
  }
}

TEST_F(LoraTest, ReadsHalfPrecisionAndQuantizedAdapters) {
  const auto model = open_golden(kStories);
  TestAdapter adapter = adapter_for(*model);
  // Numbers that F16 holds exactly, so both files say the same.
  for (AdapterTensor& tensor : adapter.tensors) {
    for (float& number : tensor.numbers) number = std::round(number * 64.0F) / 64.0F;
  }
  const auto wanted = unsplit_logits(must_adapt(kStories, adapter, 1.0F), tokens_);
  gguf::GgufWriter writer;
  writer.add("general.type", "adapter");
  writer.add("adapter.type", "lora");
  writer.add("general.architecture", "llama");
  writer.add("adapter.lora.alpha", *adapter.alpha);
  for (const AdapterTensor& tensor : adapter.tensors)
    writer.add_tensor(tensor.name, quant::DataType::kF16, tensor.shape);
  ASSERT_TRUE(writer.begin(path_).ok());
  for (const AdapterTensor& tensor : adapter.tensors) {
    std::vector<std::uint16_t> halves;
    for (const float number : tensor.numbers) halves.push_back(f32_to_f16(number));
    ASSERT_TRUE(writer.write(std::as_bytes(std::span(halves))).ok());
  }
  ASSERT_TRUE(writer.finish().ok());
  auto file = gguf::GgufFile::open(std::string(RECUA_GOLDEN_DIR) + "/" + kStories);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(add_lora(*file, *read_hyperparams(*file), path_, 1.0F).ok());
  EXPECT_TRUE(has_lora(*file));
  EXPECT_FALSE(has_lora(*model));
  const auto got =
      unsplit_logits(std::make_shared<const gguf::GgufFile>(std::move(file).value()), tokens_);
  EXPECT_EQ(worst_difference(got, wanted), 0.0);
}

TEST_F(LoraTest, IsAnotherFileInMemoryWithAnotherScale) {
  const TestAdapter adapter = adapter_for(*open_golden(kRandom));
  const auto one = must_adapt(kRandom, adapter, 1.0F);
  const auto half = must_adapt(kRandom, adapter, 0.5F);
  ASSERT_EQ(one->n_shards(), 2u);
  EXPECT_NE(one->shard_name(1), half->shard_name(1));
  EXPECT_EQ(one->shard_name(1), must_adapt(kRandom, adapter, 1.0F)->shard_name(1));
  EXPECT_TRUE(one->is_mapped(0));
  EXPECT_FALSE(one->is_mapped(1));
}

TEST_F(LoraTest, RefusesWhatIsNoAdapterOfTheModel) {
  const TestAdapter good = adapter_for(*open_golden(kRandom));
  TestAdapter bad = good;
  bad.type = "model";
  expect_error(bad, ErrorCode::kCorrupt, "general.type is 'model', must be \"adapter\"");
  bad = good;
  bad.adapter_type = "dora";
  expect_error(bad, ErrorCode::kCorrupt, "adapter.type is 'dora'");
  bad = good;
  bad.architecture = "qwen2";
  expect_error(bad, ErrorCode::kCorrupt, "general.architecture is 'qwen2', must be \"llama\"");
  bad = good;
  bad.alpha = std::numeric_limits<float>::infinity();
  expect_error(bad, ErrorCode::kCorrupt, "adapter.lora.alpha is inf");
  bad = good;
  bad.tensors.clear();
  expect_error(bad, ErrorCode::kCorrupt, "without tensors");
}

TEST_F(LoraTest, RefusesTensorsThatDoNotFit) {
  const TestAdapter good = adapter_for(*open_golden(kRandom));
  TestAdapter bad = good;
  bad.tensors.erase(bad.tensors.begin());
  expect_error(bad, ErrorCode::kCorrupt, "has no ");
  bad = good;
  bad.tensors.pop_back();
  expect_error(bad, ErrorCode::kCorrupt, ".lora_b' beside it");
  bad = good;
  bad.tensors[0].shape[0] *= 2;
  bad.tensors[0].numbers.resize(bad.tensors[0].numbers.size() * 2);
  expect_error(bad, ErrorCode::kCorrupt, fmt::format("tensor '{}' has shape", bad.tensors[0].name));
  bad = good;
  bad.tensors[1].shape = {bad.tensors[1].shape[0] + 1, bad.tensors[1].shape[1]};
  bad.tensors[1].numbers.resize(bad.tensors[1].shape[0] * bad.tensors[1].shape[1]);
  expect_error(bad, ErrorCode::kCorrupt, fmt::format("tensor '{}' has shape", bad.tensors[1].name));
  bad = good;
  bad.tensors[1].numbers[3] = std::numeric_limits<float>::quiet_NaN();
  expect_error(bad, ErrorCode::kCorrupt, "not finite");
  bad = good;
  for (std::size_t i : {0u, 1u}) {
    std::string& name = bad.tensors[i].name;
    name = "blk.999" + name.substr(name.find('.', 4));
  }
  expect_error(bad, ErrorCode::kCorrupt, "has no tensor 'blk.999.");
  bad = good;
  bad.tensors[0].name = "blk.0.attn_norm.weight";
  expect_error(bad, ErrorCode::kUnsupported, "blk.0.attn_norm.weight");
  bad = good;
  bad.tensors[0].shape[1] = 9000;
  bad.tensors[0].numbers.resize(bad.tensors[0].shape[0] * 9000);
  expect_error(bad, ErrorCode::kCorrupt, "rank 9000, need at most 8192");
}

TEST_F(LoraTest, RefusesAModelThatHasAnAdapterAlready) {
  const auto model = open_golden(kRandom);
  const auto hp = read_hyperparams(*model);
  ASSERT_TRUE(hp.ok());
  write(adapter_for(*model), path_);
  const std::vector<float> numbers(4);
  for (const char* const half : {".lora_a", ".lora_b"}) {
    gguf::GgufWriter writer;
    writer.add_tensor(std::string("blk.0.attn_q.weight") + half, quant::DataType::kF32,
                      std::vector<std::uint64_t>{2, 2});
    ASSERT_TRUE(writer.begin(folder_ / "base.gguf").ok());
    ASSERT_TRUE(writer.write(std::as_bytes(std::span(numbers))).ok());
    ASSERT_TRUE(writer.finish().ok());
    auto base = gguf::GgufFile::open(folder_ / "base.gguf");
    ASSERT_TRUE(base.ok()) << base.error().message;
    EXPECT_TRUE(has_lora(*base)) << half;
    const auto added = add_lora(*base, *hp, path_, 1.0F);
    ASSERT_FALSE(added.ok()) << half;
    EXPECT_NE(added.error().message.find("has an adapter's tensors already"), std::string::npos)
        << added.error().message;
  }
}

TEST_F(LoraTest, RefusesAMatrixOfMoreThanTwoDimensions) {
  const auto hp = read_hyperparams(*open_golden(kRandom));
  ASSERT_TRUE(hp.ok());
  const std::string name = "blk.0.attn_q.weight";
  const std::vector<float> numbers(24);
  gguf::GgufWriter writer;
  writer.add_tensor(name, quant::DataType::kF32, std::vector<std::uint64_t>{4, 2, 3});
  ASSERT_TRUE(writer.begin(folder_ / "base.gguf").ok());
  ASSERT_TRUE(writer.write(std::as_bytes(std::span(numbers))).ok());
  ASSERT_TRUE(writer.finish().ok());
  auto base = gguf::GgufFile::open(folder_ / "base.gguf");
  ASSERT_TRUE(base.ok()) << base.error().message;
  TestAdapter adapter;
  adapter.tensors = {{name + ".lora_a", {4, 1}, std::vector<float>(4)},
                     {name + ".lora_b", {1, 2}, std::vector<float>(2)}};
  write(adapter, path_);
  const auto added = add_lora(*base, *hp, path_, 1.0F);
  ASSERT_FALSE(added.ok());
  EXPECT_EQ(added.error().code, ErrorCode::kCorrupt);
  for (const std::string& word : {"'" + name + "' has shape ", std::string("[4, 2, 3]")}) {
    EXPECT_NE(added.error().message.find(word), std::string::npos) << added.error().message;
  }
}

TEST_F(LoraTest, RefusesToAdaptEmbeddingsAndExperts) {
  const auto pair_for = [&](const std::string& model, const std::string& name) {
    const auto file = open_golden(model);
    const gguf::TensorInfo* info = file->find(name);
    EXPECT_NE(info, nullptr);
    TestAdapter adapter;
    adapter.tensors = {{name + ".lora_a", {info->shape[0], 1}, {}},
                       {name + ".lora_b", {1, info->shape[1]}, {}}};
    for (AdapterTensor& tensor : adapter.tensors)
      tensor.numbers.resize(tensor.shape[0] * tensor.shape[1]);
    return adapter;
  };
  expect_error(pair_for(kRandom, "token_embd.weight"), ErrorCode::kUnsupported,
               "token_embd.weight.lora_a");
  const char* const mixtral = "random/rnd-mixtral-f16.gguf";
  expect_error(pair_for(mixtral, "blk.0.ffn_gate_exps.weight"), ErrorCode::kUnsupported,
               "ffn_gate_exps", mixtral);
}

TEST_F(LoraTest, RefusesAFileThatIsNotThere) {
  auto file = gguf::GgufFile::open(std::string(RECUA_GOLDEN_DIR) + "/" + kRandom);
  ASSERT_TRUE(file.ok());
  const auto added = add_lora(*file, *read_hyperparams(*file), folder_ / "none.gguf", 1.0F);
  ASSERT_FALSE(added.ok());
  EXPECT_EQ(added.error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace recua::model
