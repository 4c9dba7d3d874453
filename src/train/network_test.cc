// The whole model: its loss and gradients against the same in f64, and that neither threads nor
// recomputation change a bit.
#include "train/network.h"

#include <array>
#include <cmath>
#include <string>

#include "base/check.h"
#include "train/optimizer.h"
#include "train/reference.h"

namespace recua::train {
namespace {

using reference::Doubles;

ModelShape tiny_shape(const model::Architecture& arch, bool tied) {
  ModelShape shape;
  shape.hp.architecture = &arch;
  shape.hp.vocab_size = 13;
  shape.hp.n_ctx_train = 16;
  shape.hp.n_layers = 2;
  shape.hp.hidden_size = 8;
  shape.hp.n_heads = 4;
  shape.hp.n_kv_heads = 2;
  shape.hp.head_dim = 4;  // Wider together than hidden_size, as Qwen 3 has it.
  shape.hp.rope_dim = 4;
  shape.hp.ffn_size = 12;
  shape.hp.rms_eps = 1e-3F;
  shape.qkv_bias = arch.qkv_bias == model::Presence::kAlways;
  shape.qk_norm = arch.qk_norm == model::Presence::kAlways;
  shape.tied = tied;
  return shape;
}

Example example(std::vector<std::int32_t> tokens, std::vector<std::uint8_t> counts = {}) {
  if (counts.empty()) counts.assign(tokens.size() - 1, 1);
  return {.tokens = std::move(tokens), .counts = std::move(counts)};
}

Batch tiny_batch() {
  Batch batch;
  batch.add(example({1, 5, 7, 5, 12, 0}, {1, 0, 1, 1, 1}));
  batch.add(example({3, 3}));
  batch.add(example({9, 2, 11, 4}));
  return batch;
}

std::vector<float> random_params(const ParameterLayout& layout, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> params(layout.n_params());
  for (const TensorSpec& tensor : layout.tensors()) {
    for (std::size_t i = 0; i < tensor.size(); ++i) {
      const double deviation = tensor.is_matrix ? 0.4 : 0.2;
      params[tensor.offset + i] =
          static_cast<float>(static_cast<double>(tensor.init_mean) + deviation * rng.normal());
    }
  }
  return params;
}

// The loss in f64, from the papers' formulas.
double reference_loss(const ModelShape& shape, const ParameterLayout& layout, const Batch& batch,
                      const Doubles& params) {
  const model::HyperParams& hp = shape.hp;
  const std::size_t n = batch.n_rows();
  const std::size_t hidden = hp.hidden_size;
  const double eps = static_cast<double>(hp.rms_eps);
  const auto tensor = [&](std::size_t at, std::size_t size) {
    const auto begin = params.begin() + static_cast<std::ptrdiff_t>(at);
    return Doubles(begin, begin + static_cast<std::ptrdiff_t>(size));
  };
  const auto product = [&](const Doubles& x, std::size_t at, std::size_t n_in, std::size_t n_out) {
    return reference::linear(x, tensor(at, n_in * n_out), n, n_in, n_out);
  };
  const auto plus = [](Doubles a, const Doubles& b) {
    for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i % b.size()];
    return a;
  };
  const reference::Rope rope{.kind = hp.architecture->rope,
                             .head_dim = hp.head_dim,
                             .rope_dim = hp.rope_dim,
                             .theta = static_cast<double>(hp.rope_theta)};
  Doubles x;
  for (const std::int32_t id : batch.inputs) {
    const Doubles row = tensor(layout.token_embd() + static_cast<std::size_t>(id) * hidden, hidden);
    x.insert(x.end(), row.begin(), row.end());
  }
  for (std::size_t l = 0; l < hp.n_layers; ++l) {
    const LayerOffsets& at = layout.layer(l);
    const Doubles normed = reference::rms_norm(x, tensor(at.attn_norm, hidden), n, eps);
    const auto project = [&](std::size_t w, std::size_t bias, std::size_t norm,
                             std::size_t n_heads) {
      const std::size_t size = n_heads * hp.head_dim;
      Doubles y = product(normed, w, hidden, size);
      if (bias != LayerOffsets::kNone) y = plus(y, tensor(bias, size));
      if (norm != LayerOffsets::kNone) {
        y = reference::rms_norm(y, tensor(norm, hp.head_dim), n * n_heads, eps);
      }
      return reference::rope(y, rope, batch.positions, n_heads);
    };
    const std::size_t kv_size = std::size_t{hp.n_kv_heads} * hp.head_dim;
    Doubles v = product(normed, at.v, hidden, kv_size);
    if (at.v_bias != LayerOffsets::kNone) v = plus(v, tensor(at.v_bias, kv_size));
    const AttentionShape attention{.sequences = batch.sequences,
                                   .n_heads = hp.n_heads,
                                   .n_kv_heads = hp.n_kv_heads,
                                   .head_dim = hp.head_dim,
                                   .window = hp.sliding_window};
    const Doubles attended =
        reference::attention(attention, project(at.q, at.q_bias, at.q_norm, hp.n_heads),
                             project(at.k, at.k_bias, at.k_norm, hp.n_kv_heads), v);
    x = plus(x, product(attended, at.attn_output, std::size_t{hp.n_heads} * hp.head_dim, hidden));
    const Doubles ffn_normed = reference::rms_norm(x, tensor(at.ffn_norm, hidden), n, eps);
    const Doubles act = reference::silu_mul(product(ffn_normed, at.gate, hidden, hp.ffn_size),
                                            product(ffn_normed, at.up, hidden, hp.ffn_size));
    x = plus(x, product(act, at.down, hp.ffn_size, hidden));
  }
  x = reference::rms_norm(x, tensor(layout.output_norm(), hidden), n, eps);
  return reference::cross_entropy(product(x, layout.output(), hidden, hp.vocab_size), hp.vocab_size,
                                  batch.targets, batch.counts);
}

struct Case {
  const char* name;
  const model::Architecture& (*arch)();
  bool tied;
  std::uint32_t window;
};
constexpr std::array kCases = {
    Case{"llama", model::arch_llama, false, 0}, Case{"llama_tied", model::arch_llama, true, 3},
    Case{"qwen2", model::arch_qwen2, true, 0}, Case{"qwen3", model::arch_qwen3, false, 0}};

class NetworkTest : public ::testing::TestWithParam<Case> {
 protected:
  NetworkTest() : shape_(tiny_shape(GetParam().arch(), GetParam().tied)) {
    shape_.hp.sliding_window = GetParam().window;
  }
  std::vector<float> gradient(std::size_t n_threads, bool recompute, sys::InstructionSet set) {
    Team team = Team::create(n_threads, set).value();
    Network network =
        Network::create(team, shape_, {.rows_max = 16, .sequence_max = 8, .recompute = recompute})
            .value();
    std::vector<float> out(layout_.n_params());
    loss_ = network.loss_and_gradient(batch_, params_, 0.5F, out);
    EXPECT_EQ(network.loss(batch_, params_), loss_);
    return out;
  }

  ModelShape shape_;
  ParameterLayout layout_{shape_};
  std::vector<float> params_ = random_params(layout_, 4);
  Batch batch_ = tiny_batch();
  double loss_ = 0.0;
};
INSTANTIATE_TEST_SUITE_P(Models, NetworkTest, ::testing::ValuesIn(kCases),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(NetworkTest, HasTheLossAndTheGradientsOfDifferencesInDouble) {
  const auto f = [&](const Doubles& params) {
    return 0.5 * reference_loss(shape_, layout_, batch_, params);
  };
  const Doubles expected = reference::numeric_gradient(f, reference::widen(params_));
  for (const sys::InstructionSet set : sys::supported_instruction_sets()) {
    const std::vector<float> found = gradient(2, false, set);
    EXPECT_NEAR(0.5 * loss_, f(reference::widen(params_)), 1e-5 * loss_);
    for (const TensorSpec& tensor : layout_.tensors()) {
      SCOPED_TRACE(tensor.name);
      const auto begin = expected.begin() + static_cast<std::ptrdiff_t>(tensor.offset);
      reference::expect_close(std::span(found).subspan(tensor.offset, tensor.size()),
                              Doubles(begin, begin + static_cast<std::ptrdiff_t>(tensor.size())));
    }
  }
}

TEST_P(NetworkTest, NeitherThreadsNorRecomputationChangeABit) {
  const sys::InstructionSet set = sys::supported_instruction_sets().back();
  const std::vector<float> expected = gradient(1, false, set);
  EXPECT_EQ(gradient(1, true, set), expected);
  EXPECT_EQ(gradient(2, false, set), expected);
  EXPECT_EQ(gradient(3, true, set), expected);
}

TEST(Optimizer, FollowsItsSchedule) {
  const Schedule schedule{.lr = 1.0, .lr_final = 0.1, .n_warmup = 10, .n_steps = 110};
  EXPECT_DOUBLE_EQ(schedule.at(0), 0.1);
  EXPECT_DOUBLE_EQ(schedule.at(9), 1.0);
  EXPECT_DOUBLE_EQ(schedule.at(10), 1.0);
  EXPECT_NEAR(schedule.at(60), 0.55, 1e-12);
  EXPECT_DOUBLE_EQ(schedule.at(110), 0.1);
  EXPECT_EQ(clip_factor({.clip_norm = 2.0}, 1.0), 1.0F);
  EXPECT_EQ(clip_factor({.clip_norm = 2.0}, 8.0), 0.25F);
}

// Ten sentences learned by heart. They begin with different letters, so that each next letter
// follows from those before it.
TEST(Training, LearnsTenSentencesByHeart) {
  const std::array<std::string_view, 10> sentences = {
      "A mule carries more than it weighs.", "Before dawn the train sets out.",
      "Cold rivers are crossed at noon.",    "Dust tells who came by last.",
      "Each animal knows the one in front.", "From the pass you can see the salt.",
      "Good ropes are worth their price.",   "He who leads walks in the wind.",
      "In the evening the load comes off.",  "Just one stone too many breaks it."};
  ModelShape shape = tiny_shape(model::arch_llama(), true);
  shape.hp.vocab_size = 128;
  shape.hp.hidden_size = 64;
  shape.hp.head_dim = 16;
  shape.hp.rope_dim = 16;
  shape.hp.ffn_size = 128;
  Team team = Team::create(1, sys::supported_instruction_sets().back()).value();
  Network network = Network::create(team, shape, {.rows_max = 400, .sequence_max = 40}).value();
  Batch batch;
  for (const std::string_view text : sentences) batch.add(example({text.begin(), text.end()}));
  std::vector<float> params(network.layout().n_params());
  std::vector<float> m(params.size());
  std::vector<float> v(params.size());
  network.layout().initialize(1, params);
  const double n = static_cast<double>(batch.n_counted());
  const Schedule schedule{.lr = 5e-3, .lr_final = 5e-4, .n_warmup = 10, .n_steps = 200};
  const double first = network.loss(batch, params) / n;
  EXPECT_NEAR(first, std::log(128.0), 0.5);  // It knows nothing yet.
  double loss = first;
  for (std::uint64_t step = 0; step < schedule.n_steps; ++step) {
    std::vector<float> gradients(params.size());
    loss = network.loss_and_gradient(batch, params, static_cast<float>(1.0 / n), gradients) / n;
    adam_step(team, network.layout(), {.weight_decay = 0.0}, schedule.at(step), step, 1.0F,
              gradients, {.params = params, .m = m, .v = v});
  }
  EXPECT_LT(loss, 0.05);
}

}  // namespace
}  // namespace recua::train
