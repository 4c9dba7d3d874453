#pragma once
/// For tests: the operators of training in f64, plain loops, and gradients by central differences.
/// Written from the formulas and not from the code that they check.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"
#include "compute/device.h"
#include "train/attention.h"

namespace recua::train::reference {

using Doubles = std::vector<double>;

inline std::vector<float> random_floats(std::size_t n, Rng& rng, double mean = 0.0,
                                        double deviation = 1.0) {
  std::vector<float> out(n);
  for (float& x : out) x = static_cast<float>(mean + deviation * rng.normal());
  return out;
}
inline Doubles widen(std::span<const float> x) { return {x.begin(), x.end()}; }

/// Of f at x, one coordinate after the other: (f(x + h) - f(x - h)) / 2h. With h = 1e-5 and f of
/// size 1, the error is about 1e-10 from the third derivative and 1e-11 from rounding.
inline Doubles numeric_gradient(const std::function<double(const Doubles&)>& f, Doubles x) {
  constexpr double kStep = 1e-5;
  Doubles out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + kStep;
    const double above = f(x);
    x[i] = kept - kStep;
    const double below = f(x);
    x[i] = kept;
    out[i] = (above - below) / (2.0 * kStep);
  }
  return out;
}

/// Each within 1e-3 relative. What is small beside the largest of them is the difference of larger
/// terms in f32: 1e-5 of the largest is allowed too.
inline void expect_close(std::span<const float> found, const Doubles& expected) {
  ASSERT_EQ(found.size(), expected.size());
  double largest = 0.0;
  for (const double x : expected) largest = std::max(largest, std::abs(x));
  ASSERT_GT(largest, 0.0) << "a gradient of zeros shows nothing";
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], 1e-3 * std::abs(expected[i]) + 1e-5 * largest)
        << "element " << i << " of " << found.size();
  }
}

/// sum of a b: turns an operator's output into a number whose gradient by the output is b.
inline double dot(const Doubles& a, std::span<const float> b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * static_cast<double>(b[i]);
  return sum;
}

inline Doubles linear(const Doubles& x, const Doubles& w, std::size_t n_rows, std::size_t n_in,
                      std::size_t n_out) {
  Doubles y(n_rows * n_out);
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t o = 0; o < n_out; ++o) {
      for (std::size_t i = 0; i < n_in; ++i) y[r * n_out + o] += x[r * n_in + i] * w[o * n_in + i];
    }
  }
  return y;
}

inline Doubles rms_norm(const Doubles& x, const Doubles& weight, std::size_t n_rows, double eps) {
  const std::size_t n = weight.size();
  Doubles y(n_rows * n);
  for (std::size_t r = 0; r < n_rows; ++r) {
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) sum += x[r * n + i] * x[r * n + i];
    const double s = 1.0 / std::sqrt(sum / static_cast<double>(n) + eps);
    for (std::size_t i = 0; i < n; ++i) y[r * n + i] = x[r * n + i] * s * weight[i];
  }
  return y;
}

inline Doubles silu_mul(const Doubles& gate, const Doubles& up) {
  Doubles out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
  return out;
}

struct Rope {
  compute::RopeKind kind = compute::RopeKind::kInterleaved;
  std::size_t head_dim = 0;
  std::size_t rope_dim = 0;
  double theta = 10000.0;
};

/// x: [positions, n_heads, head_dim].
inline Doubles rope(Doubles x, const Rope& rope, std::span<const std::uint32_t> positions,
                    std::size_t n_heads) {
  for (std::size_t r = 0; r < positions.size(); ++r) {
    for (std::size_t h = 0; h < n_heads; ++h) {
      double* const head = x.data() + (r * n_heads + h) * rope.head_dim;
      for (std::size_t j = 0; j < rope.rope_dim / 2; ++j) {
        const double angle =
            positions[r] * std::pow(rope.theta, -2.0 * static_cast<double>(j) /
                                                    static_cast<double>(rope.rope_dim));
        const bool interleaved = rope.kind == compute::RopeKind::kInterleaved;
        double& a = head[interleaved ? 2 * j : j];
        double& b = head[interleaved ? 2 * j + 1 : j + rope.rope_dim / 2];
        const double a_old = a;
        a = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a_old * std::sin(angle);
      }
    }
  }
  return x;
}

inline Doubles attention(const AttentionShape& shape, const Doubles& q, const Doubles& k,
                         const Doubles& v) {
  Doubles out(q.size());
  const std::size_t d = shape.head_dim;
  for (const SequenceRows& sequence : shape.sequences) {
    for (std::size_t h = 0; h < shape.n_heads; ++h) {
      const std::size_t kv = h / (shape.n_heads / shape.n_kv_heads);
      for (std::size_t i = 0; i < sequence.n; ++i) {
        const auto q_at = [&](std::size_t at) {
          return ((sequence.begin + at) * shape.n_heads + h) * d;
        };
        const auto kv_at = [&](std::size_t at) {
          return ((sequence.begin + at) * shape.n_kv_heads + kv) * d;
        };
        const std::size_t first =
            shape.window > 0 && i + 1 > shape.window ? i + 1 - shape.window : 0;
        Doubles p(sequence.n);
        double sum = 0.0;
        for (std::size_t j = first; j <= i; ++j) {
          double score = 0.0;
          for (std::size_t e = 0; e < d; ++e) score += q[q_at(i) + e] * k[kv_at(j) + e];
          p[j] = std::exp(score / std::sqrt(static_cast<double>(d)));
          sum += p[j];
        }
        for (std::size_t j = first; j <= i; ++j) {
          for (std::size_t e = 0; e < d; ++e) out[q_at(i) + e] += p[j] / sum * v[kv_at(j) + e];
        }
      }
    }
  }
  return out;
}

/// The sum of -log softmax(row)[target] over counted rows.
inline double cross_entropy(const Doubles& logits, std::size_t vocab_size,
                            std::span<const std::int32_t> ids,
                            std::span<const std::uint8_t> counts) {
  double loss = 0.0;
  for (std::size_t r = 0; r < ids.size(); ++r) {
    if (counts[r] == 0) continue;
    const double* const row = logits.data() + r * vocab_size;
    double sum = 0.0;
    for (std::size_t i = 0; i < vocab_size; ++i) sum += std::exp(row[i]);
    loss += std::log(sum) - row[static_cast<std::size_t>(ids[r])];
  }
  return loss;
}

}  // namespace recua::train::reference
