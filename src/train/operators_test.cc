// Every operator's backward pass against central differences of a forward pass in f64, and the
// forward pass against that one. Once per instruction set.
#include <numeric>
#include <string>

#include "train/attention.h"
#include "train/cross_entropy.h"
#include "train/linear.h"
#include "train/norm.h"
#include "train/reference.h"
#include "train/rope.h"
#include "train/row_ops.h"

namespace recua::train {
namespace {

using reference::dot;
using reference::Doubles;
using reference::expect_close;
using reference::numeric_gradient;
using reference::random_floats;
using reference::widen;

class OperatorsTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  Rng rng_{21};
  Team team_ = Team::create(2, GetParam()).value();
};
INSTANTIATE_TEST_SUITE_P(Sets, OperatorsTest,
                         ::testing::ValuesIn(sys::supported_instruction_sets().begin(),
                                             sys::supported_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

TEST_P(OperatorsTest, LinearHasTheGradientsOfDifferences) {
  const LinearShape shape{.n_rows = 9, .n_in = 7, .n_out = 11};
  const auto x = random_floats(shape.n_rows * shape.n_in, rng_);
  const auto w = random_floats(shape.n_out * shape.n_in, rng_);
  const auto dy = random_floats(shape.n_rows * shape.n_out, rng_);
  const auto f = [&](const Doubles& xs, const Doubles& ws) {
    return reference::linear(xs, ws, shape.n_rows, shape.n_in, shape.n_out);
  };
  std::vector<float> y(dy.size());
  linear(team_, shape, x.data(), w.data(), y.data());
  expect_close(y, f(widen(x), widen(w)));

  std::vector<float> dx(x.size(), 5.0F);  // What was there goes.
  linear_backward_input(team_, shape, dy.data(), w.data(), dx.data(), false);
  const Doubles by_x =
      numeric_gradient([&](const Doubles& xs) { return dot(f(xs, widen(w)), dy); }, widen(x));
  expect_close(dx, by_x);
  linear_backward_input(team_, shape, dy.data(), w.data(), dx.data(), true);
  Doubles twice = by_x;
  for (double& value : twice) value *= 2.0;
  expect_close(dx, twice);

  std::vector<float> dw(w.size());
  linear_backward_weight(team_, shape, dy.data(), x.data(), dw.data());
  expect_close(
      dw, numeric_gradient([&](const Doubles& ws) { return dot(f(widen(x), ws), dy); }, widen(w)));
}

TEST_P(OperatorsTest, BiasAndEmbeddingAddUpWhatReachesThem) {
  const std::size_t n = 6;
  const std::vector<std::int32_t> ids = {2, 0, 2, 3};
  const auto dy = random_floats(ids.size() * n, rng_);
  const auto table = random_floats(5 * n, rng_);
  std::vector<float> out(ids.size() * n);
  embed(team_, ids, n, table.data(), out.data());
  const auto embedded = [&](const Doubles& t) {
    Doubles rows;
    for (const std::int32_t id : ids) {
      rows.insert(rows.end(), t.begin() + id * static_cast<std::ptrdiff_t>(n),
                  t.begin() + (id + 1) * static_cast<std::ptrdiff_t>(n));
    }
    return rows;
  };
  expect_close(out, embedded(widen(table)));
  std::vector<float> d_table(table.size());
  embed_backward(team_, ids, n, dy.data(), d_table.data());
  expect_close(d_table, numeric_gradient([&](const Doubles& t) { return dot(embedded(t), dy); },
                                         widen(table)));

  const auto bias = random_floats(n, rng_);
  const auto biased = [&](const Doubles& b) {
    Doubles rows = embedded(widen(table));
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += b[i % n];
    return rows;
  };
  add_bias(team_, ids.size(), n, bias.data(), out.data());
  expect_close(out, biased(widen(bias)));
  std::vector<float> d_bias(n);
  bias_backward(team_, ids.size(), n, dy.data(), d_bias.data());
  expect_close(d_bias,
               numeric_gradient([&](const Doubles& b) { return dot(biased(b), dy); }, widen(bias)));
}

TEST_P(OperatorsTest, RmsNormHasTheGradientsOfDifferences) {
  const NormShape shape{.n_rows = 5, .n = 13, .eps = 1e-2F};
  const auto x = random_floats(shape.n_rows * shape.n, rng_);
  const auto weight = random_floats(shape.n, rng_, 1.0, 0.3);
  const auto dy = random_floats(x.size(), rng_);
  const auto f = [&](const Doubles& xs, const Doubles& ws) {
    return reference::rms_norm(xs, ws, shape.n_rows, static_cast<double>(shape.eps));
  };
  std::vector<float> y(x.size());
  rms_norm(team_, shape, x.data(), weight.data(), y.data());
  expect_close(y, f(widen(x), widen(weight)));
  std::vector<float> s(shape.n_rows);
  std::vector<float> dx = dy;  // In place.
  std::vector<float> d_weight(shape.n);
  rms_norm_backward(team_, shape, x.data(), weight.data(), dx.data(), s.data(), dx.data(), false,
                    d_weight.data());
  expect_close(dx, numeric_gradient(
                       [&](const Doubles& xs) { return dot(f(xs, widen(weight)), dy); }, widen(x)));
  expect_close(
      d_weight,
      numeric_gradient([&](const Doubles& ws) { return dot(f(widen(x), ws), dy); }, widen(weight)));
}

TEST_P(OperatorsTest, SiluMulHasTheGradientsOfDifferences) {
  const std::size_t n = 4096 + 13;
  const auto gate = random_floats(n, rng_, 0.0, 2.0);
  const auto up = random_floats(n, rng_);
  const auto dy = random_floats(n, rng_);
  std::vector<float> out(n);
  silu_mul(team_, n, gate.data(), up.data(), out.data());
  expect_close(out, reference::silu_mul(widen(gate), widen(up)));
  std::vector<float> d_gate = gate;  // In place.
  std::vector<float> d_up = up;
  silu_mul_backward(team_, n, d_gate.data(), d_up.data(), dy.data(), d_gate.data(), d_up.data());
  // Elements do not meet, so each difference is taken alone.
  Doubles by_gate(n);
  Doubles by_up(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double g = gate[i];
    const double u = up[i];
    by_gate[i] = numeric_gradient(
        [&](const Doubles& x) { return reference::silu_mul(x, {u})[0] * dy[i]; }, {g})[0];
    by_up[i] = numeric_gradient(
        [&](const Doubles& x) { return reference::silu_mul({g}, x)[0] * dy[i]; }, {u})[0];
  }
  expect_close(d_gate, by_gate);
  expect_close(d_up, by_up);
}

TEST_P(OperatorsTest, RopeTurnsBackInTheBackwardPass) {
  const std::vector<std::uint32_t> positions = {0, 1, 2, 0, 7};
  const std::size_t n_heads = 3;
  for (const model::Architecture* arch : {&model::arch_llama(), &model::arch_qwen3()}) {
    model::HyperParams hp;
    hp.architecture = arch;
    hp.head_dim = 10;
    hp.rope_dim = 8;
    const reference::Rope rope{.kind = arch->rope, .head_dim = 10, .rope_dim = 8};
    const RopeTable table(hp, {}, 8);
    const auto x = random_floats(positions.size() * n_heads * hp.head_dim, rng_);
    const auto dy = random_floats(x.size(), rng_);
    std::vector<float> y = x;
    table.apply(team_, positions, n_heads, RopeTable::Turn::kForward, y.data());
    expect_close(y, reference::rope(widen(x), rope, positions, n_heads));
    std::vector<float> dx = dy;
    table.apply(team_, positions, n_heads, RopeTable::Turn::kBackward, dx.data());
    expect_close(dx, numeric_gradient(
                         [&](const Doubles& xs) {
                           return dot(reference::rope(xs, rope, positions, n_heads), dy);
                         },
                         widen(x)));
  }
}

TEST_P(OperatorsTest, AttentionHasTheGradientsOfDifferences) {
  struct Case {
    std::vector<SequenceRows> sequences;
    std::size_t n_heads, n_kv_heads, window;
  };
  // More than one block of 64 queries; several sequences, one of a single row; a window.
  const std::vector<Case> cases = {{{{0, 3}, {3, 1}, {4, 6}}, 4, 2, 0},
                                   {{{0, 70}}, 2, 1, 0},
                                   {{{0, 70}}, 1, 1, 5},
                                   {{{0, 5}, {5, 4}}, 3, 3, 2}};
  for (const Case& one : cases) {
    SCOPED_TRACE(::testing::Message() << one.n_heads << " heads, window " << one.window);
    const AttentionShape shape{.sequences = one.sequences,
                               .n_heads = one.n_heads,
                               .n_kv_heads = one.n_kv_heads,
                               .head_dim = 4,
                               .window = one.window};
    const std::size_t n_rows = one.sequences.back().begin + one.sequences.back().n;
    const auto q = random_floats(n_rows * shape.n_heads * shape.head_dim, rng_);
    const auto k = random_floats(n_rows * shape.n_kv_heads * shape.head_dim, rng_);
    const auto v = random_floats(k.size(), rng_);
    const auto dy = random_floats(q.size(), rng_);
    std::vector<float> scratch(attention_scratch_floats(team_.n_threads(), n_rows));
    std::vector<float> out(q.size());
    attention(team_, shape, q.data(), k.data(), v.data(), out.data(), scratch);
    const auto f = [&](const Doubles& qs, const Doubles& ks, const Doubles& vs) {
      return reference::attention(shape, qs, ks, vs);
    };
    expect_close(out, f(widen(q), widen(k), widen(v)));

    std::vector<float> dq(q.size(), 3.0F);  // What was there goes.
    std::vector<float> dk(k.size(), 3.0F);
    std::vector<float> dv(k.size(), 3.0F);
    attention_backward(team_, shape, q.data(), k.data(), v.data(), dy.data(),
                       {.dq = dq.data(), .dk = dk.data(), .dv = dv.data()}, scratch);
    expect_close(
        dq, numeric_gradient([&](const Doubles& x) { return dot(f(x, widen(k), widen(v)), dy); },
                             widen(q)));
    expect_close(
        dk, numeric_gradient([&](const Doubles& x) { return dot(f(widen(q), x, widen(v)), dy); },
                             widen(k)));
    expect_close(
        dv, numeric_gradient([&](const Doubles& x) { return dot(f(widen(q), widen(k), x), dy); },
                             widen(v)));
  }
}

TEST_P(OperatorsTest, CrossEntropyCountsOnlyTheRowsThatItShould) {
  const std::size_t vocab_size = 19;
  const std::vector<std::int32_t> ids = {3, 18, 0, 7};
  const std::vector<std::uint8_t> counts = {1, 0, 1, 1};
  const auto logits = random_floats(ids.size() * vocab_size, rng_, 0.0, 3.0);
  const Targets targets{.ids = ids, .counts = counts};
  std::vector<float> losses(ids.size());
  std::vector<float> work = logits;
  cross_entropy(team_, targets, vocab_size, work.data(), losses);
  const double expected = reference::cross_entropy(widen(logits), vocab_size, ids, counts);
  EXPECT_NEAR(std::accumulate(losses.begin(), losses.end(), 0.0), expected, 1e-5 * expected);
  EXPECT_EQ(losses[1], 0.0F);

  const float scale = 0.25F;
  std::vector<float> d_logits = logits;
  std::vector<float> losses_again(ids.size());
  cross_entropy_backward(team_, targets, vocab_size, scale, d_logits.data(), losses_again);
  EXPECT_EQ(losses_again, losses);
  expect_close(d_logits, numeric_gradient(
                             [&](const Doubles& x) {
                               return 0.25 * reference::cross_entropy(x, vocab_size, ids, counts);
                             },
                             widen(logits)));
}

}  // namespace
}  // namespace recua::train
