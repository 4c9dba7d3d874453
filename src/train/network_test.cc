// The whole model: its loss and gradients against the same in f64, and that neither threads nor
// recomputation change a bit.
#include "train/network.h"

#include <array>
#include <cmath>
#include <string>

#include "base/check.h"
#include "train/optimizer.h"
#include "train/reference_network.h"

namespace recua::train {
namespace {

using reference::Doubles;
using reference::example;
using reference::random_params;
using reference::reference_loss;
using reference::tiny_batch;
using reference::tiny_shape;

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
