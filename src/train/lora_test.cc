// Adapters on frozen weights: the operators, the gradients of a network, and what is written,
// against f64, against the same products in F32, and against inference.
#include "model/lora.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/scratch_folder.h"
#include "gguf/gguf_writer.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"
#include "train/lora_model.h"
#include "train/model_file.h"
#include "train/network.h"
#include "train/reference_network.h"

namespace recua::train {
namespace {

using quant::DataType;
using reference::dot;
using reference::Doubles;
using reference::expect_close;
using reference::numeric_gradient;
using reference::random_floats;
using reference::widen;

const std::vector<std::string> kAllTargets = parse_lora_targets("all").value();

std::vector<std::byte> quantized(DataType type, std::size_t n_rows, std::size_t n,
                                 const float* from) {
  const std::size_t row_bytes = quant::row_bytes(type, n);
  std::vector<std::byte> out(n_rows * row_bytes);
  for (std::size_t r = 0; r < n_rows; ++r) {
    quant::quantize_row(type, from + r * n, n, out.data() + r * row_bytes);
  }
  return out;
}

class LoraOperatorsTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  Rng rng_{21};
  Team team_ = Team::create(2, GetParam()).value();
};
INSTANTIATE_TEST_SUITE_P(Sets, LoraOperatorsTest,
                         ::testing::ValuesIn(sys::supported_instruction_sets().begin(),
                                             sys::supported_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

// 700 rows are two whole tiles and a part of one.
TEST_P(LoraOperatorsTest, FrozenProductsHaveTheBitsOfTheSameMatrixInF32) {
  const LinearShape shape{.n_rows = 9, .n_in = 256, .n_out = 700};
  const auto x = random_floats(shape.n_rows * shape.n_in, rng_);
  const auto dy = random_floats(shape.n_rows * shape.n_out, rng_);
  const std::vector<std::int32_t> ids = {699, 0, 256};
  std::vector<float> scratch(frozen_scratch_floats(shape.n_in));
  for (const DataType type : {DataType::kF32, DataType::kF16, DataType::kQ8_0, DataType::kQ4_0,
                              DataType::kQ4_K, DataType::kQ6_K}) {
    SCOPED_TRACE(quant::traits(type).name);
    const auto numbers = random_floats(shape.n_out * shape.n_in, rng_);
    const std::vector<std::byte> bytes = quantized(type, shape.n_out, shape.n_in, numbers.data());
    const FrozenMatrix w{
        .type = type, .data = bytes.data(), .n_in = shape.n_in, .n_out = shape.n_out};
    std::vector<float> wide(shape.n_out * shape.n_in);
    for (std::size_t r = 0; r < shape.n_out; ++r) {
      quant::dequantize_row(type, bytes.data() + r * quant::row_bytes(type, shape.n_in), shape.n_in,
                            wide.data() + r * shape.n_in);
    }
    std::vector<float> expected(dy.size());
    std::vector<float> found(dy.size());
    linear(team_, shape, x.data(), wide.data(), expected.data());
    frozen_linear(team_, shape.n_rows, x.data(), w, found.data(), scratch);
    EXPECT_EQ(found, expected);

    for (const bool accumulate : {false, true}) {
      std::vector<float> expected_dx(x.size(), 3.0F);
      std::vector<float> found_dx(x.size(), 3.0F);
      linear_backward_input(team_, shape, dy.data(), wide.data(), expected_dx.data(), accumulate);
      frozen_linear_backward_input(team_, shape.n_rows, dy.data(), w, found_dx.data(), accumulate,
                                   scratch);
      if (GetParam() == sys::InstructionSet::kScalar) {
        expect_close(found_dx, widen(expected_dx));
      } else {
        EXPECT_EQ(found_dx, expected_dx);
      }
    }
    std::vector<float> expected_rows(ids.size() * shape.n_in);
    std::vector<float> found_rows(expected_rows.size());
    embed(team_, ids, shape.n_in, wide.data(), expected_rows.data());
    frozen_embed(team_, ids, w, found_rows.data());
    EXPECT_EQ(found_rows, expected_rows);
  }
}

TEST_P(LoraOperatorsTest, PairsHaveTheGradientsOfDifferences) {
  const LinearShape shape{.n_rows = 9, .n_in = 7, .n_out = 11};
  const std::size_t rank = 3;
  const float scale = 1.75F;
  const auto x = random_floats(shape.n_rows * shape.n_in, rng_);
  const auto a = random_floats(rank * shape.n_in, rng_);
  const auto b = random_floats(shape.n_out * rank, rng_);
  const auto dy = random_floats(shape.n_rows * shape.n_out, rng_);
  const LoraPair pair{.a = a.data(), .b = b.data(), .rank = rank, .scale = scale};
  const auto f = [&](const Doubles& xs, const Doubles& as, const Doubles& bs) {
    Doubles u = reference::linear(xs, as, shape.n_rows, shape.n_in, rank);
    for (double& value : u) value *= static_cast<double>(scale);
    return reference::linear(u, bs, shape.n_rows, rank, shape.n_out);
  };
  std::vector<float> scratch(2 * shape.n_rows * rank);
  std::vector<float> y(dy.size());
  lora_forward(team_, shape, x.data(), pair, y.data(), scratch);
  expect_close(y, f(widen(x), widen(a), widen(b)));

  std::vector<float> dx(x.size());
  std::vector<float> da(a.size());
  std::vector<float> db(b.size());
  lora_backward(team_, shape, dy.data(), x.data(), pair, dx.data(),
                {.da = da.data(), .db = db.data()}, scratch);
  expect_close(
      dx, numeric_gradient([&](const Doubles& xs) { return dot(f(xs, widen(a), widen(b)), dy); },
                           widen(x)));
  expect_close(
      da, numeric_gradient([&](const Doubles& as) { return dot(f(widen(x), as, widen(b)), dy); },
                           widen(a)));
  expect_close(
      db, numeric_gradient([&](const Doubles& bs) { return dot(f(widen(x), widen(a), bs), dy); },
                           widen(b)));
}

TEST(LoraTargets, AreNamesOfTheFileOrOfPeft) {
  EXPECT_EQ(parse_lora_targets("v_proj,attn_q,q_proj").value(),
            (std::vector<std::string>{"attn_q", "attn_v"}));
  EXPECT_EQ(kAllTargets.size(), 7u);
  for (const char* const bad : {"", ",", "attn_q,attn_norm", "attn_q.weight"}) {
    const auto parsed = parse_lora_targets(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(parsed.error().message.find("ffn_down"), std::string::npos);
  }
}

/// A model file with matrices of several types, and what they are in F32.
class LoraModelTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    shape_ = reference::tiny_shape(*model::find_architecture(GetParam()),
                                   std::string_view(GetParam()) == "qwen3");
    shape_.hp.name = "tiny";
    shape_.hp.hidden_size = 32;
    shape_.hp.head_dim = shape_.hp.rope_dim = 8;
    shape_.hp.ffn_size = 64;
    const ParameterLayout layout(shape_);
    const std::vector<float> numbers = reference::random_params(layout, 4);
    gguf::GgufWriter writer;
    model::add_hyperparams(shape_.hp, writer);
    for (const TensorSpec& spec : layout.tensors()) {
      const std::array<std::uint64_t, 2> dims = {spec.n_in, spec.n_out};
      writer.add_tensor(spec.name, type_of(spec), std::span(dims).first(spec.is_matrix ? 2 : 1));
    }
    ASSERT_TRUE(writer.begin(scratch_ / "base.gguf").ok());
    for (const TensorSpec& spec : layout.tensors()) {
      ASSERT_TRUE(
          writer
              .write(quantized(type_of(spec), spec.n_out, spec.n_in, numbers.data() + spec.offset))
              .ok());
    }
    ASSERT_TRUE(writer.finish().ok());
    file_ = std::make_shared<const gguf::GgufFile>(
        gguf::GgufFile::open(scratch_ / "base.gguf").value());
    wide_.resize(layout.n_params());
    ASSERT_TRUE(read_params(*file_, layout, wide_).ok());
  }

  static DataType type_of(const TensorSpec& spec) {
    if (!spec.is_matrix) return DataType::kF32;
    if (spec.name.find("attn_") != std::string::npos) return DataType::kQ8_0;
    if (spec.name.find("ffn_gate") != std::string::npos) return DataType::kQ4_0;
    if (spec.name.find("ffn_down") != std::string::npos) return DataType::kF16;
    return DataType::kQ5_0;
  }

  LoraModel lora_model(std::string_view targets = "all", std::size_t rank = 2) const {
    const LoraOptions options{
        .rank = rank, .alpha = 3.0F, .targets = parse_lora_targets(targets).value()};
    return LoraModel::create(*file_, shape_, options).value();
  }

  /// The weights with scale * B A added, in f64 from the definition.
  Doubles merged(const LoraModel& lora, const Doubles& adapter) const {
    Doubles out = widen(wide_);
    const ParameterLayout layout(shape_);
    const std::size_t rank = lora.options().rank;
    for (const TensorSpec& spec : layout.tensors()) {
      const auto* const at = lora.pair(spec.offset);
      if (at == nullptr) continue;
      for (std::size_t o = 0; o < spec.n_out; ++o) {
        for (std::size_t i = 0; i < spec.n_in; ++i) {
          double sum = 0.0;
          for (std::size_t r = 0; r < rank; ++r) {
            sum += adapter[at->b + o * rank + r] * adapter[at->a + r * spec.n_in + i];
          }
          out[spec.offset + o * spec.n_in + i] += static_cast<double>(lora.options().scale()) * sum;
        }
      }
    }
    return out;
  }

  ScratchFolder scratch_;
  ModelShape shape_;
  std::shared_ptr<const gguf::GgufFile> file_;
  std::vector<float> wide_;
  Batch batch_ = reference::tiny_batch();
  Rng rng_{8};
};
INSTANTIATE_TEST_SUITE_P(Models, LoraModelTest, ::testing::Values("llama", "qwen2", "qwen3"),
                         [](const auto& one) { return std::string(one.param); });

TEST_P(LoraModelTest, HasTheGradientsOfDifferencesInDoubleOnAQuantizedBase) {
  const LoraModel lora = lora_model();
  const ParameterLayout layout(shape_);
  const std::vector<float> adapter = random_floats(lora.layout().n_params(), rng_, 0.0, 0.2);
  const auto f = [&](const Doubles& numbers) {
    return 0.5 * reference::reference_loss(shape_, layout, batch_, merged(lora, numbers));
  };
  const Doubles expected = numeric_gradient(f, widen(adapter));
  for (const sys::InstructionSet set : sys::supported_instruction_sets()) {
    Team team = Team::create(2, set).value();
    Network network =
        Network::create(team, shape_, {.rows_max = 16, .sequence_max = 8}, &lora).value();
    std::vector<float> found(adapter.size());
    const double loss = network.loss_and_gradient(batch_, adapter, 0.5F, found);
    EXPECT_NEAR(0.5 * loss, f(widen(adapter)), 1e-5 * loss);
    for (const TensorSpec& tensor : lora.layout().tensors()) {
      SCOPED_TRACE(tensor.name);
      const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(tensor.offset);
      expect_close(std::span(found).subspan(tensor.offset, tensor.size()),
                   Doubles(begin, begin + static_cast<std::ptrdiff_t>(tensor.size())));
    }
  }
}

TEST_P(LoraModelTest, ANewAdapterChangesNothing) {
  const LoraModel lora = lora_model("attn_q,ffn_down", 4);
  std::vector<float> adapter(lora.layout().n_params());
  lora.layout().initialize(7, adapter);
  EXPECT_GT(std::ranges::count_if(adapter, [](float x) { return x != 0.0F; }), 0);
  Team team = Team::create(1, sys::supported_instruction_sets().back()).value();
  const NetworkLimits limits{.rows_max = 16, .sequence_max = 8};
  Network plain = Network::create(team, shape_, limits).value();
  Network adapted = Network::create(team, shape_, limits, &lora).value();
  EXPECT_EQ(adapted.loss(batch_, adapter), plain.loss(batch_, wide_));
  EXPECT_EQ(lora.layout().tensors().size(), 2u * 2u * shape_.hp.n_layers);
}

TEST_P(LoraModelTest, NeitherThreadsNorRecomputationChangeABit) {
  const LoraModel lora = lora_model();
  const std::vector<float> adapter = random_floats(lora.layout().n_params(), rng_, 0.0, 0.2);
  const auto gradient = [&](std::size_t n_threads, bool recompute) {
    Team team = Team::create(n_threads, sys::supported_instruction_sets().back()).value();
    Network network =
        Network::create(team, shape_, {.rows_max = 16, .sequence_max = 8, .recompute = recompute},
                        &lora)
            .value();
    std::vector<float> out(adapter.size());
    network.loss_and_gradient(batch_, adapter, 0.5F, out);
    return out;
  };
  const std::vector<float> expected = gradient(1, false);
  EXPECT_EQ(gradient(2, true), expected);
  EXPECT_EQ(gradient(3, false), expected);
}

TEST_P(LoraModelTest, NamesATensorThatDoesNotFit) {
  ModelShape wider = shape_;
  wider.hp.ffn_size += 1;
  const auto made = LoraModel::create(*file_, wider, {.targets = kAllTargets});
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(made.error().message.find("blk.0.ffn_gate.weight"), std::string::npos)
      << made.error().message;
  const auto no_rank = LoraModel::create(*file_, shape_, {.rank = 0, .targets = kAllTargets});
  ASSERT_FALSE(no_rank.ok());
  EXPECT_NE(no_rank.error().message.find("rank is 0"), std::string::npos);
}

}  // namespace
}  // namespace recua::train
