// Every table's product of F32 matrices against sums in f64, and the laws that callers rely on.
#include "kernels/gemm.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"
#include "kernels/kernel_table.h"
#include "kernels/random_weights.h"

namespace recua::kernels {
namespace {

// A random [rows, columns] matrix, stored transposed or not, with rows longer than needed.
struct Stored {
  Stored(std::size_t rows, std::size_t columns, bool transposed, Rng& rng)
      : view{.stride = (transposed ? rows : columns) + 3, .transposed = transposed} {
    values = random_floats(view.stride * (transposed ? columns : rows) + 1, rng);
    view.data = values.data() + 1;  // Misaligned.
  }
  [[nodiscard]] double at(std::size_t i, std::size_t j) const {
    return view.transposed ? view.data[j * view.stride + i] : view.data[i * view.stride + j];
  }
  std::vector<float> values;
  GemmMatrix view;
};

class GemmTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  void run(GemmArgs args) {
    args.scratch = scratch_.data();
    kernel_table(GetParam()).gemm(args);
  }

  void check_shape(std::size_t m, std::size_t n, std::size_t k) {
    for (int form = 0; form < 8; ++form) {
      const Stored a(m, k, (form & 1) != 0, rng_);
      const Stored b(k, n, (form & 2) != 0, rng_);
      const bool accumulate = (form & 4) != 0;
      const std::size_t stride = n + 5;
      const std::vector<float> before = random_floats(m * stride, rng_);
      std::vector<float> c = before;
      run({.a = a.view,
           .b = b.view,
           .c = c.data(),
           .c_stride = stride,
           .m = m,
           .n = n,
           .k = k,
           .accumulate = accumulate});
      for (std::size_t i = 0; i < m; ++i) {
        for (std::size_t j = 0; j < stride; ++j) {
          const std::size_t at = i * stride + j;
          if (j >= n) {
            ASSERT_EQ(c[at], before[at]) << "wrote past a row";
            continue;
          }
          double sum = accumulate ? static_cast<double>(before[at]) : 0.0;
          double magnitude = std::abs(sum);
          for (std::size_t p = 0; p < k; ++p) {
            const double product = a.at(i, p) * b.at(p, j);
            sum += product;
            magnitude += std::abs(product);
          }
          ASSERT_NEAR(c[at], sum, static_cast<double>(k + 2) * 0x1.0p-23 * magnitude)
              << m << 'x' << n << 'x' << k << " form " << form << " at " << i << ' ' << j;
        }
      }
    }
  }

  Rng rng_{5};
  std::vector<float> scratch_ = std::vector<float>(kGemmScratchFloats);
};
INSTANTIATE_TEST_SUITE_P(Sets, GemmTest,
                         ::testing::ValuesIn(sys::supported_instruction_sets().begin(),
                                             sys::supported_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

TEST_P(GemmTest, AgreesWithSumsInDoubleForEveryTailAndForm) {
  for (const std::size_t m : {1U, 5U, 6U, 7U, 12U, 13U}) {
    for (const std::size_t n : {1U, 7U, 8U, 15U, 16U, 17U, 31U, 33U}) {
      for (const std::size_t k : {0U, 1U, 7U, 8U, 9U, 31U}) check_shape(m, n, k);
    }
  }
}

TEST_P(GemmTest, AgreesAcrossTheEdgesOfBlocks) {
  check_shape(kGemmBlockM + 7, 18, 40);
  check_shape(7, kGemmBlockN + 19, 9);
  check_shape(8, 20, 2 * kGemmBlockK + 11);
}

// Threads take parts of c: what they cut must not show in any bit.
TEST_P(GemmTest, GivesTheSameBitsForEveryCutOfTheResult) {
  const std::size_t m = kGemmBlockM + 23;
  const std::size_t n = 61;
  const std::size_t k = kGemmBlockK + 77;
  const Stored a(m, k, false, rng_);
  const Stored b(k, n, true, rng_);
  std::vector<float> whole(m * n);
  run({.a = a.view, .b = b.view, .c = whole.data(), .c_stride = n, .m = m, .n = n, .k = k});
  for (const std::size_t cut : {1U, 5U, 6U, 40U, 60U}) {
    std::vector<float> by_rows(m * n);
    std::vector<float> by_columns(m * n);
    for (const bool second : {false, true}) {
      const std::size_t begin = second ? cut : 0;
      run({.a = {.data = a.view.data + begin * a.view.stride, .stride = a.view.stride},
           .b = b.view,
           .c = by_rows.data() + begin * n,
           .c_stride = n,
           .m = second ? m - cut : cut,
           .n = n,
           .k = k});
      run({.a = a.view,
           .b = {.data = b.view.data + begin * b.view.stride,
                 .stride = b.view.stride,
                 .transposed = true},
           .c = by_columns.data() + begin,
           .c_stride = n,
           .m = m,
           .n = second ? n - cut : cut,
           .k = k});
    }
    ASSERT_EQ(by_rows, whole) << "cut at row " << cut;
    ASSERT_EQ(by_columns, whole) << "cut at column " << cut;
  }
}

TEST_P(GemmTest, BackwardOfSiluMulAgreesWithDoubles) {
  const KernelTable& table = kernel_table(GetParam());
  for (std::size_t n = 1; n <= 40; ++n) {
    std::vector<float> gate = random_floats(n, rng_);
    for (float& x : gate) x *= 6.0F;
    if (n > 3) gate[3] = -120.0F;
    const std::vector<float> up = random_floats(n, rng_);
    const std::vector<float> d_out = random_floats(n, rng_);
    std::vector<float> d_gate(n + 1, 7.0F);
    std::vector<float> d_up(n + 1, 7.0F);
    table.silu_mul_backward(gate.data(), up.data(), d_out.data(), n, d_gate.data(), d_up.data());
    for (std::size_t i = 0; i < n; ++i) {
      const double x = gate[i];
      const double s = 1.0 / (1.0 + std::exp(-x));
      const double outer = static_cast<double>(d_out[i]) * s;
      ASSERT_NEAR(d_up[i], outer * x, 2e-6 * std::abs(outer * x) + 1e-30);
      ASSERT_NEAR(d_gate[i], outer * up[i] * (1.0 + x * (1.0 - s)),
                  2e-6 * std::abs(outer * up[i]) * (1.0 + std::abs(x)) + 1e-30);
    }
    ASSERT_EQ(d_gate[n], 7.0F);
    ASSERT_EQ(d_up[n], 7.0F);
  }
}

TEST_P(GemmTest, AdamHasTheBitsOfTheReference) {
  for (std::size_t n = 1; n <= 40; ++n) {
    const std::vector<float> gradient = random_floats(n, rng_);
    std::vector<float> arrays[2][3];
    for (auto& one : arrays[0]) one = random_floats(n + 1, rng_);
    for (float& v : arrays[0][2]) v = std::abs(v);
    for (std::size_t i = 0; i < 3; ++i) arrays[1][i] = arrays[0][i];
    const KernelTable* const tables[] = {&kernel_table(GetParam()),
                                         &kernel_table(sys::InstructionSet::kScalar)};
    for (std::size_t t = 0; t < 2; ++t) {
      tables[t]->adam({.gradient = gradient.data(),
                       .p = arrays[t][0].data(),
                       .m = arrays[t][1].data(),
                       .v = arrays[t][2].data(),
                       .n = n,
                       .factor = 0.7F,
                       .b1 = 0.9F,
                       .b2 = 0.95F,
                       .keep = 0.999F,
                       .rate = 0.01F,
                       .v_scale = 3.0F,
                       .eps = 1e-8F});
    }
    for (std::size_t i = 0; i < 3; ++i) ASSERT_EQ(arrays[0][i], arrays[1][i]) << n;
  }
}

}  // namespace
}  // namespace recua::kernels
