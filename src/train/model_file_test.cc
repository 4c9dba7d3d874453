// What training computes from a model file is what inference computes from it, and so is what it
// writes.
#include "train/model_file.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string>

#include "base/random.h"
#include "base/scratch_folder.h"
#include "model/lora.h"
#include "model/merge_lora.h"
#include "model/test_models.h"
#include "train/lora_model.h"
#include "train/network.h"

namespace recua::train {
namespace {

constexpr std::uint32_t kTokens = 40;

std::vector<TokenId> some_tokens(std::uint32_t vocab_size) {
  Rng rng(3);
  std::vector<TokenId> out(kTokens);
  for (TokenId& id : out) id = static_cast<TokenId>(rng.below(vocab_size));
  return out;
}

// Logits of inference, [kTokens, vocab_size].
std::vector<float> inferred(const std::shared_ptr<const gguf::GgufFile>& file,
                            const std::vector<TokenId>& tokens) {
  const auto device = model::test_device();
  auto executor = model::LocalExecutor::create(*device, file, model::exact_options(64));
  EXPECT_TRUE(executor.ok()) << executor.error().message;
  model::TestSequence sequence;
  model::StepBatch batch;
  batch.parts.push_back(sequence.next(tokens));
  for (std::uint32_t r = 0; r < kTokens; ++r) {
    batch.outputs.push_back({.row = r, .kind = model::OutputRequest::Kind::kLogits});
  }
  const auto result = (*executor)->run(batch);
  EXPECT_TRUE(result.ok()) << result.error().message;
  std::vector<float> out;
  for (const model::StepOutput& output : result->outputs) {
    out.insert(out.end(), output.logits.begin(), output.logits.end());
  }
  return out;
}

std::vector<float> trained_logits(const ModelShape& shape, std::span<const float> params,
                                  const std::vector<TokenId>& tokens,
                                  const LoraModel* lora = nullptr) {
  Team team = Team::create(1, sys::supported_instruction_sets().back()).value();
  Network network =
      Network::create(team, shape, {.rows_max = kTokens, .sequence_max = kTokens}, lora).value();
  Example example{.tokens = tokens, .counts = std::vector<std::uint8_t>(tokens.size(), 1)};
  example.tokens.push_back(0);
  Batch batch;
  batch.add(example);
  std::vector<float> out(std::size_t{kTokens} * shape.hp.vocab_size);
  network.logits(batch, params, out);
  return out;
}

void expect_same_logits(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  float largest = 0.0F;
  for (const float x : expected) largest = std::max(largest, std::abs(x));
  ASSERT_GT(largest, 0.1F);
  for (std::size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-4F);
}

class ModelFileTest : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Golden, ModelFileTest,
                         ::testing::Values("models/stories260K.gguf", "random/rnd-llama-f32.gguf",
                                           "random/rnd-llama-bf16.gguf",
                                           "random/rnd-llama-f16-gqa-tied-rope3.gguf",
                                           "random/rnd-qwen2-f16.gguf",
                                           "random/rnd-qwen3-f16.gguf"),
                         [](const auto& one) {
                           std::string name = std::string(one.param);
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
                           return name;
                         });

TEST_P(ModelFileTest, ComputesAndWritesWhatInferenceComputes) {
  const auto file = model::open_golden(GetParam());
  const auto shape = read_shape(*file);
  ASSERT_TRUE(shape.ok()) << shape.error().message;
  const ParameterLayout layout(*shape);
  std::vector<float> params(layout.n_params());
  ASSERT_TRUE(read_params(*file, layout, params).ok());
  const std::vector<TokenId> tokens = some_tokens(shape->hp.vocab_size);
  expect_same_logits(trained_logits(*shape, params, tokens), inferred(file, tokens));

  // Changed weights, so that the written file cannot be the old one.
  for (float& x : params) x *= 1.01F;
  const ScratchFolder scratch;
  const auto written = write_model(scratch / "out.gguf", *shape, layout, params,
                                   {.source = file.get(), .from_model = true});
  ASSERT_TRUE(written.ok()) << written.error().message;
  auto reopened = gguf::GgufFile::open(scratch / "out.gguf");
  ASSERT_TRUE(reopened.ok()) << reopened.error().message;
  const auto copy = std::make_shared<const gguf::GgufFile>(std::move(reopened).value());
  expect_same_logits(trained_logits(*shape, params, tokens), inferred(copy, tokens));
  EXPECT_EQ(copy->has("tokenizer.ggml.tokens"), file->has("tokenizer.ggml.tokens"));
}

// Trained, at run time beside the model, and merged into its weights.
TEST_P(ModelFileTest, AnAdapterDoesTheSameInEachWay) {
  const auto file = model::open_golden(GetParam());
  const ModelShape shape = read_shape(*file).value();
  const auto lora = LoraModel::create(
      *file, shape, {.rank = 3, .alpha = 4.5F, .targets = parse_lora_targets("all").value()});
  ASSERT_TRUE(lora.ok()) << lora.error().message;
  std::vector<float> adapter(lora->layout().n_params());
  Rng rng(6);
  for (float& x : adapter) x = static_cast<float>(0.05 * rng.normal());
  const std::vector<TokenId> tokens = some_tokens(shape.hp.vocab_size);
  const std::vector<float> expected = trained_logits(shape, adapter, tokens, &*lora);

  const ScratchFolder scratch;
  ASSERT_TRUE(write_adapter(scratch / "adapter.gguf", shape, *lora, adapter).ok());
  auto adapted = gguf::GgufFile::open(file->name());
  ASSERT_TRUE(adapted.ok());
  const auto added = model::add_lora(*adapted, shape.hp, scratch / "adapter.gguf", 1.0F);
  ASSERT_TRUE(added.ok()) << added.error().message;
  const auto merged = model::write_merged(*adapted, scratch / "merged.gguf", 1);
  ASSERT_TRUE(merged.ok()) << merged.error().message;
  EXPECT_EQ(merged->n_merged, 7u * shape.hp.n_layers);

  const auto beside = std::make_shared<const gguf::GgufFile>(std::move(adapted).value());
  expect_same_logits(inferred(beside, tokens), expected);
  const auto within =
      std::make_shared<const gguf::GgufFile>(gguf::GgufFile::open(scratch / "merged.gguf").value());
  expect_same_logits(inferred(within, tokens), expected);
  const std::vector<float> plain = inferred(file, tokens);
  float change = 0.0F;
  for (std::size_t i = 0; i < plain.size(); ++i)
    change = std::max(change, std::abs(plain[i] - expected[i]));
  EXPECT_GT(change, 1e-2F);  // It does something.
}

TEST(ModelFile, NewModelsOfEachFamilyRunInInference) {
  const auto vocabulary = model::open_golden("models/stories260K.gguf");
  for (const char* const arch : {"llama", "qwen2", "qwen3"}) {
    SCOPED_TRACE(arch);
    ModelShape shape;
    shape.hp.architecture = model::find_architecture(arch);
    shape.hp.name = "new";
    shape.hp.vocab_size = 512;
    shape.hp.n_ctx_train = 64;
    shape.hp.n_layers = 2;
    shape.hp.hidden_size = 32;
    shape.hp.n_heads = 4;
    shape.hp.n_kv_heads = 2;
    shape.hp.head_dim = 8;
    shape.hp.rope_dim = 8;
    shape.hp.ffn_size = 48;
    shape.qkv_bias = shape.hp.architecture->qkv_bias == model::Presence::kAlways;
    shape.qk_norm = shape.hp.architecture->qk_norm == model::Presence::kAlways;
    shape.tied = shape.qk_norm;
    const ParameterLayout layout(shape);
    std::vector<float> params(layout.n_params());
    layout.initialize(9, params);
    for (const TensorSpec& tensor : layout.tensors()) {
      if (!tensor.is_matrix) continue;  // New weights alone make logits too small to compare.
      for (float& x : std::span(params).subspan(tensor.offset, tensor.size())) x *= 2.0F;
    }
    const ScratchFolder scratch;
    ASSERT_TRUE(
        write_model(scratch / "new.gguf", shape, layout, params, {.source = vocabulary.get()})
            .ok());
    auto opened = gguf::GgufFile::open(scratch / "new.gguf");
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    const auto file = std::make_shared<const gguf::GgufFile>(std::move(opened).value());
    const std::vector<TokenId> tokens = some_tokens(shape.hp.vocab_size);
    expect_same_logits(trained_logits(shape, params, tokens), inferred(file, tokens));
    EXPECT_EQ(file->get_str("general.name").value(), "new");
    EXPECT_TRUE(file->has("tokenizer.ggml.tokens"));
    const auto again = read_shape(*file);
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_EQ(ParameterLayout(*again).n_params(), layout.n_params());
  }
}

TEST(ModelFile, NamesWhatItCannotTrain) {
  const auto experts = model::open_golden("random/rnd-mixtral-f16.gguf");
  const auto shape = read_shape(*experts);
  ASSERT_FALSE(shape.ok());
  EXPECT_EQ(shape.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(shape.error().message.find("experts"), std::string::npos) << shape.error().message;

  const auto file = model::open_golden("random/rnd-llama-f32.gguf");
  model::ModelEdits edits;
  edits.more_tensors = {{"blk.0.attn_output.bias", quant::DataType::kF32, {64}}};
  const auto more = model::edited(*file, edits);
  const auto unknown = read_shape(*more->file);
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("attn_output.bias"), std::string::npos);

  model::ModelEdits cut;
  cut.tensor = [](model::TensorEdit& tensor) {
    if (tensor.name == "blk.1.ffn_up.weight") tensor.shape[1] -= 1;
    return tensor.name != "blk.0.ffn_norm.weight";
  };
  const auto broken = model::edited(*file, cut);
  const auto broken_shape = read_shape(*broken->file);
  ASSERT_TRUE(broken_shape.ok()) << broken_shape.error().message;
  const ParameterLayout layout(*broken_shape);
  std::vector<float> params(layout.n_params());
  const auto read = read_params(*broken->file, layout, params);
  ASSERT_FALSE(read.ok());
  EXPECT_NE(read.error().message.find("ffn_norm"), std::string::npos) << read.error().message;
}

}  // namespace
}  // namespace recua::train
