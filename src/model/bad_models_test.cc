// Hyperparameters and weights: what is read, and a clear error for each thing that can be wrong.
#include <cmath>
#include <cstring>
#include <numbers>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "model/rope.h"
#include "model/test_models.h"

namespace recua::model {
namespace {

using gguf::Value;

const char* const kLlama = "models/stories260K.gguf";
const char* const kQwen2 = "random/rnd-qwen2-f16.gguf";
const char* const kQwen3 = "random/rnd-qwen3-f16.gguf";
const char* const kMixtral = "random/rnd-mixtral-f16.gguf";
const char* const kTied = "random/rnd-llama-f16-gqa-tied-rope3.gguf";

/// The model with one metadata value replaced, or added.
std::shared_ptr<const EditedModel> with(const std::string& name, const std::string& key,
                                        const Value& value) {
  ModelEdits edits;
  edits.metadata = [&](std::string_view k, Value&) { return k != key; };
  edits.more_metadata = {{key, value}};
  return edited(*open_golden(name), edits);
}
std::shared_ptr<const EditedModel> without(const std::string& name, const std::string& key) {
  ModelEdits edits;
  edits.metadata = [&](std::string_view k, Value&) { return k != key; };
  return edited(*open_golden(name), edits);
}

template <class T>
void expect_error(const Result<T>& result, ErrorCode code, const std::vector<std::string>& words) {
  ASSERT_FALSE(result.ok()) << "expected an error with: " << words.front();
  EXPECT_EQ(result.error().code, code) << result.error().message;
  for (const std::string& word : words) {
    EXPECT_NE(result.error().message.find(word), std::string::npos)
        << "no \"" << word << "\" in: " << result.error().message;
  }
}

TEST(HyperParams, ReadsLlama) {
  const auto hp = read_hyperparams(*open_golden(kLlama));
  ASSERT_TRUE(hp.ok()) << hp.error().message;
  EXPECT_EQ(hp->architecture, &arch_llama());
  EXPECT_EQ(hp->vocab_size, 512U);
  EXPECT_EQ(hp->n_layers, 5U);
  EXPECT_EQ(hp->hidden_size, 64U);
  EXPECT_EQ(hp->n_heads, 8U);
  EXPECT_EQ(hp->n_kv_heads, 4U);
  EXPECT_EQ(hp->head_dim, 8U);
  EXPECT_EQ(hp->rope_dim, 8U);
  EXPECT_EQ(hp->ffn_size, 172U);
  EXPECT_EQ(hp->n_ctx_train, 2048U);
  EXPECT_EQ(hp->rope_theta, 10000.0F);
  EXPECT_EQ(hp->n_experts, 0U);
}

TEST(HyperParams, ReadsQwen3WithItsOwnHeadSize) {
  const auto hp = read_hyperparams(*open_golden(kQwen3));
  ASSERT_TRUE(hp.ok()) << hp.error().message;
  EXPECT_EQ(hp->head_dim, 64U);
  EXPECT_EQ(hp->hidden_size, 128U);
  EXPECT_EQ(hp->architecture->rope, compute::RopeKind::kSplitHalf);
}

TEST(HyperParams, ReadsExperts) {
  const auto hp = read_hyperparams(*open_golden(kMixtral));
  ASSERT_TRUE(hp.ok()) << hp.error().message;
  EXPECT_EQ(hp->n_experts, 4U);
  EXPECT_EQ(hp->n_experts_used, 2U);
  EXPECT_EQ(hp->expert_ffn_size, 96U);
}

TEST(HyperParams, RefusesValuesOutOfRange) {
  struct Case {
    const char* model;
    const char* key;
    Value value;
    ErrorCode code = ErrorCode::kCorrupt;
    std::vector<std::string> words = {};
  };
  const float nan = std::nanf("");
  const std::vector<Case> cases = {
      {kLlama,
       "general.architecture",
       std::string_view("mamba"),
       ErrorCode::kUnsupported,
       {"'mamba'", "llama, qwen2, qwen3, qwen3moe"}},
      {kLlama, "llama.block_count", std::uint32_t{0}, ErrorCode::kCorrupt, {"is 0", "1 to 1000"}},
      {kLlama, "llama.block_count", std::uint32_t{1001}, ErrorCode::kCorrupt, {"is 1001"}},
      {kLlama, "llama.block_count", std::string_view("5"), ErrorCode::kCorrupt, {"string"}},
      {kLlama, "llama.embedding_length", std::uint32_t{1} << 21, ErrorCode::kCorrupt, {"2097152"}},
      {kLlama, "llama.embedding_length", std::uint64_t{1} << 32, ErrorCode::kCorrupt, {}},
      {kLlama, "llama.embedding_length", std::int32_t{-64}, ErrorCode::kCorrupt, {}},
      {kLlama,
       "llama.embedding_length",
       std::uint32_t{65},
       ErrorCode::kCorrupt,
       {"head_count", "divisor of llama.embedding_length, which is 65"}},
      {kLlama, "llama.attention.head_count", std::uint32_t{0}, ErrorCode::kCorrupt, {"is 0"}},
      {kLlama,
       "llama.attention.head_count_kv",
       std::uint32_t{3},
       ErrorCode::kCorrupt,
       {"is 3", "divisor of the 8 heads"}},
      {kLlama, "llama.attention.head_count_kv", std::uint32_t{0}, ErrorCode::kCorrupt, {"is 0"}},
      {kLlama,
       "llama.attention.key_length",
       std::uint32_t{6},
       ErrorCode::kCorrupt,
       {"rope.dimension_count"}},
      {kLlama,
       "llama.attention.key_length",
       std::uint32_t{1} << 31,
       ErrorCode::kCorrupt,
       {"key_length"}},
      {kLlama,
       "llama.attention.value_length",
       std::uint32_t{16},
       ErrorCode::kUnsupported,
       {"value_length is 16", "keys' 8"}},
      {kLlama, "llama.rope.dimension_count", std::uint32_t{10}, ErrorCode::kCorrupt, {"is 10"}},
      {kLlama, "llama.rope.dimension_count", std::uint32_t{7}, ErrorCode::kCorrupt, {"even"}},
      {kLlama, "llama.rope.freq_base", 0.0F, ErrorCode::kCorrupt, {"freq_base is 0"}},
      {kLlama, "llama.rope.freq_base", nan, ErrorCode::kCorrupt, {"freq_base is nan"}},
      {kLlama,
       "llama.rope.scaling.type",
       std::string_view("longrope"),
       ErrorCode::kUnsupported,
       {"'longrope'", "yarn"}},
      {kLlama, "llama.rope.scaling.factor", -2.0F, ErrorCode::kCorrupt, {"factor is -2"}},
      {kLlama, "llama.context_length", std::uint32_t{0}, ErrorCode::kCorrupt, {"is 0"}},
      {kLlama, "llama.feed_forward_length", std::uint32_t{0}, ErrorCode::kCorrupt, {"is 0"}},
      {kLlama, "llama.attention.layer_norm_rms_epsilon", 0.0F, ErrorCode::kCorrupt, {"is 0"}},
      {kLlama, "llama.attention.layer_norm_rms_epsilon", nan, ErrorCode::kCorrupt, {"is nan"}},
      {kMixtral, "llama.expert_count", std::uint32_t{2000}, ErrorCode::kCorrupt, {"1 to 1024"}},
      {kMixtral, "llama.expert_used_count", std::uint32_t{5}, ErrorCode::kCorrupt, {"1 to 4"}},
      {kMixtral, "llama.expert_weights_scale", 2.5F, ErrorCode::kUnsupported, {"2.5"}},
      {kQwen2, "qwen2.expert_count", std::uint32_t{4}, ErrorCode::kUnsupported, {"qwen2"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.key);
    std::vector<std::string> words = c.words;
    words.emplace_back("edited.gguf");
    expect_error(read_hyperparams(*with(c.model, c.key, c.value)->file), c.code, words);
  }
}

TEST(HyperParams, NamesTheMissingKey) {
  for (const char* key : {"general.architecture", "llama.block_count", "llama.embedding_length",
                          "llama.attention.head_count", "llama.feed_forward_length",
                          "llama.context_length", "llama.attention.layer_norm_rms_epsilon"}) {
    expect_error(read_hyperparams(*without(kLlama, key)->file), ErrorCode::kNotFound, {key});
  }
  expect_error(read_hyperparams(*without(kMixtral, "llama.expert_used_count")->file),
               ErrorCode::kNotFound, {"llama.expert_used_count"});
}

TEST(HyperParams, TakesTheVocabularySizeFromTheFirstPlaceThatHasIt) {
  ModelEdits no_tensors;
  no_tensors.tensor = [](TensorEdit&) { return false; };
  no_tensors.more_metadata = {{"llama.vocab_size", Value(std::uint32_t{1000})}};
  EXPECT_EQ(read_hyperparams(*edited(*open_golden(kLlama), no_tensors)->file)->vocab_size, 1000U);
  no_tensors.more_metadata.clear();
  EXPECT_EQ(read_hyperparams(*edited(*open_golden(kLlama), no_tensors)->file)->vocab_size, 512U);
  no_tensors.metadata = [](std::string_view key, Value&) {
    return key.starts_with("llama") || key.starts_with("general");
  };
  expect_error(read_hyperparams(*edited(*open_golden(kLlama), no_tensors)->file),
               ErrorCode::kNotFound, {"vocabulary", "llama.vocab_size"});
}

TEST(HyperParams, TravelAsASmallFile) {
  for (const char* name : {kLlama, kQwen2, kQwen3, kMixtral, kTied}) {
    SCOPED_TRACE(name);
    const auto file = open_golden(name);
    const std::vector<std::byte> small = hyperparams_gguf(*file, 77);
    EXPECT_LT(small.size(), 4096U);
    const auto parsed = gguf::GgufFile::parse(small, "sent");
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    EXPECT_FALSE(parsed->has("tokenizer.ggml.tokens"));
    const auto sent = read_hyperparams(*parsed);
    const auto own = read_hyperparams(*file);
    ASSERT_TRUE(sent.ok()) << sent.error().message;
    EXPECT_EQ(sent->vocab_size, 77U);
    EXPECT_EQ(sent->architecture, own->architecture);
    EXPECT_EQ(sent->n_layers, own->n_layers);
    EXPECT_EQ(sent->head_dim, own->head_dim);
    EXPECT_EQ(sent->rope_theta, own->rope_theta);
    EXPECT_EQ(sent->rms_eps, own->rms_eps);
    EXPECT_EQ(sent->n_experts, own->n_experts);
    EXPECT_EQ(sent->ffn_size, own->ffn_size);
  }
}

HyperParams rope_params(RopeScaling scaling) {
  HyperParams hp;
  hp.rope_dim = 128;
  hp.rope_theta = 10000.0F;
  hp.rope_scaling = scaling;
  return hp;
}

TEST(Rope, ScalesLinearlyAndByDivisors) {
  const auto plain = rope_frequencies(rope_params({}), {});
  ASSERT_EQ(plain.inv_freq.size(), 64U);
  EXPECT_FLOAT_EQ(plain.inv_freq[0], 1.0F);
  EXPECT_FLOAT_EQ(plain.inv_freq[32], 0.01F);
  EXPECT_EQ(plain.magnitude, 1.0F);
  const auto linear =
      rope_frequencies(rope_params({.kind = RopeScaling::Kind::kLinear, .factor = 4.0F}), {});
  const std::vector<float> divisors(64, 8.0F);
  const auto divided = rope_frequencies(rope_params({}), divisors);
  for (std::size_t j = 0; j < 64; ++j) {
    EXPECT_FLOAT_EQ(linear.inv_freq[j], plain.inv_freq[j] / 4);
    EXPECT_FLOAT_EQ(divided.inv_freq[j], plain.inv_freq[j] / 8);
  }
}

// Llama 2 stretched from 4096 tokens by 16, as in the paper's section 3.2: pairs that turn more
// than 32 times in 4096 tokens keep their frequency, those that turn less than once get a 16th.
TEST(Rope, YarnKeepsFastPairsAndStretchesSlowOnes) {
  const RopeScaling yarn = {
      .kind = RopeScaling::Kind::kYarn, .factor = 16.0F, .original_n_ctx = 4096};
  const auto plain = rope_frequencies(rope_params({}), {});
  const auto scaled = rope_frequencies(rope_params(yarn), {});
  for (std::size_t j = 0; j < 64; ++j) {
    const double turns = 4096.0 * static_cast<double>(plain.inv_freq[j]) / (2.0 * std::numbers::pi);
    const float ratio = plain.inv_freq[j] / scaled.inv_freq[j];
    // The ramp begins and ends at whole pairs just outside these turns.
    if (turns > 32.0 * 1.16) {
      EXPECT_FLOAT_EQ(ratio, 1.0F) << j;
    }
    if (turns < 1.0 / 1.16) {
      EXPECT_FLOAT_EQ(ratio, 16.0F) << j;
    }
    if (j > 0) {
      EXPECT_GE(ratio, plain.inv_freq[j - 1] / scaled.inv_freq[j - 1] - 1e-4F) << j;
    }
  }
  // In the middle of the ramp both parts count.
  const double low =
      std::floor(128 * std::log(4096 / (32 * 2 * std::numbers::pi)) / (2 * std::log(10000.0)));
  const double high =
      std::ceil(128 * std::log(4096 / (2 * std::numbers::pi)) / (2 * std::log(10000.0)));
  const std::size_t middle = 33;
  const double stretched = (static_cast<double>(middle) - low) / (high - low);
  EXPECT_NEAR(scaled.inv_freq[middle] / plain.inv_freq[middle], (1 - stretched) + stretched / 16,
              1e-6);
  EXPECT_FLOAT_EQ(scaled.magnitude, 1.2772589F);  // 0.1 ln(16) + 1
}

TEST(SliceNeeds, TellsFirstMiddleAndLastApart) {
  const Slice first = {.layer_begin = 0, .layer_end = 2, .n_layers = 12};
  const Slice middle = {.layer_begin = 2, .layer_end = 11, .n_layers = 12};
  const Slice last = {.layer_begin = 11, .layer_end = 12, .n_layers = 12};
  const auto needs = [&](std::string_view name, bool tied) {
    return std::vector<bool>{slice_needs(first, tied, name), slice_needs(middle, tied, name),
                             slice_needs(last, tied, name)};
  };
  using Bools = std::vector<bool>;
  EXPECT_EQ(needs("token_embd.weight", false), (Bools{true, false, false}));
  EXPECT_EQ(needs("token_embd.weight", true), (Bools{true, false, true}));
  EXPECT_EQ(needs("output.weight", false), (Bools{false, false, true}));
  EXPECT_EQ(needs("output_norm.weight", false), (Bools{false, false, true}));
  EXPECT_EQ(needs("output.bias", true), (Bools{false, false, true}));
  EXPECT_EQ(needs("output_norm.bias", true), (Bools{false, false, true}));
  EXPECT_EQ(needs("rope_freqs.weight", false), (Bools{true, true, true}));
  EXPECT_EQ(needs("blk.1.attn_q.weight", false), (Bools{true, false, false}));
  EXPECT_EQ(needs("blk.2.attn_q.weight", false), (Bools{false, true, false}));
  EXPECT_EQ(needs("blk.11.ffn_norm.weight", false), (Bools{false, false, true}));
  for (const char* none : {"blk.12.attn_q.weight", "blk..x", "blk.1", "blk.-1.x",
                           "blk.99999999999.x", "blk.1x.y", "other", ""}) {
    EXPECT_EQ(needs(none, true), (Bools{false, false, false})) << none;
  }
}

/// Loads an edited model; the model must outlive the result.
Result<std::unique_ptr<LocalExecutor>> load(compute::Device& device,
                                            const std::shared_ptr<const EditedModel>& model) {
  const SliceOptions options = {.n_ctx = 64, .n_ubatch = 8};
  return LocalExecutor::create(device, model->file, options);
}

TEST(Weights, NameTheMissingTensor) {
  const auto device = test_device();
  for (const auto& [model, tensor] :
       std::vector<std::pair<const char*, std::string>>{{kLlama, "token_embd.weight"},
                                                        {kLlama, "output_norm.weight"},
                                                        {kLlama, "blk.0.attn_norm.weight"},
                                                        {kLlama, "blk.4.attn_k.weight"},
                                                        {kLlama, "blk.2.ffn_up.weight"},
                                                        {kQwen2, "blk.1.attn_v.bias"},
                                                        {kQwen3, "blk.0.attn_q_norm.weight"},
                                                        {kMixtral, "blk.1.ffn_gate_inp.weight"},
                                                        {kMixtral, "blk.0.ffn_down_exps.weight"}}) {
    SCOPED_TRACE(tensor);
    ModelEdits edits;
    edits.tensor = [&, name = tensor](TensorEdit& t) { return t.name != name; };
    expect_error(load(*device, edited(*open_golden(model), edits)), ErrorCode::kNotFound,
                 {tensor, "edited.gguf"});
  }
}

TEST(Weights, WithoutAnOutputMatrixAreTied) {
  const auto device = test_device();
  ModelEdits edits;
  edits.tensor = [](TensorEdit& t) { return t.name != "output.weight"; };
  EXPECT_TRUE(load(*device, edited(*open_golden(kLlama), edits)).ok());
}

TEST(Weights, SayWhichShapeWasFoundAndExpected) {
  const auto device = test_device();
  struct Case {
    const char* model;
    std::string tensor;
    std::vector<std::uint64_t> shape;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {kLlama, "blk.0.attn_q.weight", {64, 32}, {"[64, 32]", "expected [64, 64]"}},
      {kLlama, "blk.0.attn_k.weight", {64, 64}, {"[64, 64]", "expected [64, 32]"}},
      {kLlama, "blk.3.ffn_down.weight", {64, 172}, {"[64, 172]", "expected [172, 64]"}},
      {kLlama, "blk.3.ffn_norm.weight", {63}, {"[63]", "expected [64]"}},
      {kLlama, "token_embd.weight", {32, 512}, {"[32, 512]", "expected [64, 512]"}},
      {kLlama, "output.weight", {64, 511}, {"[64, 511]", "expected [64, 512]"}},
      {kLlama, "blk.0.attn_q.weight", {64, 64, 2}, {"[64, 64, 2]"}},
      {kLlama, "blk.0.attn_q.weight", {64, 1, 1, 64}, {"[64, 1, 1, 64]", "three dimensions"}},
      {kMixtral, "blk.0.ffn_up_exps.weight", {128, 96, 3}, {"[128, 96, 3]", "[128, 96, 4]"}},
      {kQwen2, "blk.0.attn_k.bias", {128}, {"[128]", "expected [32]"}},
      {kTied, "rope_freqs.weight", {16}, {"[16]", "expected [8]"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.tensor);
    ModelEdits edits;
    edits.tensor = [&](TensorEdit& t) {
      if (t.name == c.tensor) t.shape = c.shape;
      return true;
    };
    std::vector<std::string> words = c.words;
    words.push_back(c.tensor);
    words.emplace_back("edited.gguf");
    expect_error(load(*device, edited(*open_golden(c.model), edits)), ErrorCode::kCorrupt, words);
  }
}

TEST(Weights, RefuseQuantizedNormsAndUnknownParts) {
  const auto device = test_device();
  ModelEdits edits;
  edits.tensor = [](TensorEdit& t) {
    if (t.name == "blk.1.attn_norm.weight") t.type = quant::DataType::kQ8_0;
    return true;
  };
  expect_error(load(*device, edited(*open_golden(kLlama), edits)), ErrorCode::kCorrupt,
               {"blk.1.attn_norm.weight", "Q8_0", "expected F32, F16 or BF16"});
  for (const std::string name :
       {"blk.2.attn_output.bias", "blk.0.attn_norm.bias", "blk.4.ffn_norm.bias",
        "blk.1.ffn_gate_shexp.weight", "blk.1.ffn_up_shexp.weight", "blk.1.ffn_down_shexp.weight",
        "blk.1.ffn_gate_inp_shexp.weight", "output.bias", "output_norm.bias"}) {
    SCOPED_TRACE(name);
    ModelEdits more;
    more.more_tensors = {{name, quant::DataType::kF32, {64}}};
    expect_error(load(*device, edited(*open_golden(kLlama), more)), ErrorCode::kUnsupported,
                 {name, "llama"});
  }
  ModelEdits zero_divisors;
  zero_divisors.more_tensors = {{"rope_freqs.weight", quant::DataType::kF32, {4}}};
  expect_error(load(*device, edited(*open_golden(kLlama), zero_divisors)), ErrorCode::kCorrupt,
               {"rope_freqs.weight", "index 0"});
}

TEST(Weights, ReportTheirProgress) {
  const auto device = test_device();
  std::size_t last = 0;
  std::size_t total = 0;
  const LoadProgress progress = [&](std::size_t done, std::size_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  };
  const SliceOptions options = {.n_ctx = 64, .n_ubatch = 8};
  ASSERT_TRUE(LocalExecutor::create(*device, open_golden(kLlama), options, progress).ok());
  EXPECT_EQ(last, total);
  const auto file = open_golden(kLlama);
  std::size_t bytes = 0;
  for (const gguf::TensorInfo& tensor : file->tensors()) bytes += tensor.n_bytes;
  EXPECT_EQ(total, bytes);
}

TEST(Weights, RefusesAdapterTensorsThatAreNotFloats) {
  // Such as a peer may announce, or a file hold; --lora makes all of them F32.
  const auto device = test_device();
  ModelEdits edits;
  edits.more_tensors = {{"blk.0.attn_q.weight.lora_a", quant::DataType::kQ8_0, {64, 2}},
                        {"blk.0.attn_q.weight.lora_b", quant::DataType::kF32, {2, 64}}};
  const auto executor = load(*device, edited(*open_golden(kLlama), edits));
  expect_error(executor, ErrorCode::kUnsupported,
               {"blk.0.attn_q.weight.lora_a", "Q8_0", "F32", "--lora"});
}

TEST(Weights, OfADamagedModelGiveAnErrorAndNoToken) {
  const auto device = test_device();
  auto model = std::make_shared<EditedModel>(*edited(*open_golden(kLlama), {}));
  const auto original = gguf::GgufFile::parse(model->bytes, "damaged.gguf");
  const gguf::TensorInfo* norm = original->find("output_norm.weight");
  const float nan = std::nanf("");
  std::memcpy(model->bytes.data() + norm->offset, &nan, sizeof(nan));
  auto file = gguf::GgufFile::parse(model->bytes, "damaged.gguf");
  model->file = std::make_shared<const gguf::GgufFile>(std::move(file).value());
  const auto executor = load(*device, model);
  ASSERT_TRUE(executor.ok());
  TestSequence sequence;
  StepBatch batch;
  batch.parts.push_back(sequence.next({1, 2}));
  batch.outputs.push_back({.row = 1});
  expect_error((*executor)->run(batch), ErrorCode::kCorrupt, {"position 1", "nan", "token 0"});
  StepBatch free;
  free.ops.push_back({.kind = SequenceOp::Kind::kFree, .seq = 0});
  EXPECT_TRUE((*executor)->run(free).ok());
}

}  // namespace
}  // namespace recua::model
