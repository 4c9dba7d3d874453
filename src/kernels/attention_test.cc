// The steps of attention: every table that this CPU supports against the scalar one and against the
// definition, for all types of a cache, lengths, places in a group, and misalignments.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "kernels/kernel_table.h"
#include "kernels/test_products.h"
#include "quant/dequantize.h"
#include "quant/half.h"

namespace recua::kernels {
namespace {

using quant::DataType;

constexpr DataType kCacheTypes[] = {DataType::kF16, DataType::kF32, DataType::kQ8_0,
                                    DataType::kQ4_0};

class AttentionKernelsTest : public ::testing::TestWithParam<sys::InstructionSet> {
 protected:
  const KernelTable& table_ = kernel_table(GetParam());
  const KernelTable& scalar_ = kernel_table(sys::InstructionSet::kScalar);
  Rng rng_{12};
};
INSTANTIATE_TEST_SUITE_P(Sets, AttentionKernelsTest,
                         ::testing::ValuesIn(sys::supported_instruction_sets().begin(),
                                             sys::supported_instruction_sets().end()),
                         [](const auto& one) { return std::string(to_string(one.param)); });

/// A row as the cache holds it.
std::vector<std::byte> cached_row(const KernelTable& table, DataType type,
                                  const std::vector<float>& x) {
  std::vector<std::byte> out(quant::row_bytes(type, x.size()));
  if (type == DataType::kF32) std::memcpy(out.data(), x.data(), out.size());
  if (type == DataType::kF16) {
    table.f32_to_f16(x.data(), x.size(), reinterpret_cast<std::uint16_t*>(out.data()));
  }
  if (type == DataType::kQ8_0) table.cache_q8_0(x.data(), x.size(), out.data());
  if (type == DataType::kQ4_0) table.cache_q4_0(x.data(), x.size(), out.data());
  return out;
}

/// n_tokens random tokens: their elements, rows of them, and the same in groups. Both begin a byte
/// after an aligned address, except for the types of whole numbers of bytes.
struct Tokens {
  Tokens(const KernelTable& table, DataType type, std::size_t n_tokens, std::size_t head_dim,
         Rng& rng) {
    const std::size_t row_bytes = quant::row_bytes(type, head_dim);
    const std::size_t n_groups = (n_tokens + kKeyGroup - 1) / kKeyGroup;
    rows.resize(n_tokens * row_bytes + 1);
    groups.resize(n_groups * kKeyGroup * row_bytes + 1, std::byte{0x5a});
    for (std::size_t t = 0; t < n_tokens; ++t) {
      std::vector<float> x = random_floats(head_dim, rng);
      const std::vector<std::byte> row = cached_row(table, type, x);
      quant::dequantize_row(type, row.data(), head_dim, x.data());
      elements.insert(elements.end(), x.begin(), x.end());
      std::memcpy(row_data() + t * row_bytes, row.data(), row_bytes);
      std::byte* group = group_data() + t / kKeyGroup * kKeyGroup * row_bytes;
      // The layout as kernels/attention.h gives it, item by item.
      const quant::DataTypeTraits traits = quant::traits(type);
      const auto put = [&](std::size_t from, std::size_t n) {
        std::memcpy(group + t % kKeyGroup * n, row.data() + from, n);
        group += kKeyGroup * n;
      };
      for (std::size_t at = 0; at < row_bytes;) {
        if (traits.block_size == 1) {
          put(at, traits.block_bytes);
          at += traits.block_bytes;
          continue;
        }
        const bool is_scale = at % traits.block_bytes == 0;
        put(at, is_scale ? 2 : 1);
        at += is_scale ? 2 : 1;
      }
    }
  }
  [[nodiscard]] std::byte* row_data() { return rows.data() + 1; }
  [[nodiscard]] std::byte* group_data() { return groups.data() + 1; }

  std::vector<float> elements;  // [n_tokens, head_dim]
  std::vector<std::byte> rows, groups;
};

TEST_P(AttentionKernelsTest, SoftmaxPartMatchesDoubleForEveryLengthUpTo257) {
  for (std::size_t n = 1; n <= 257; ++n) {
    std::vector<float> x = random_floats(n, rng_);
    for (float& v : x) v *= 20.0F;
    if (n > 3) x[n / 2] = -500.0F;
    std::vector<float> p = x;
    const SoftmaxPart part = table_.softmax_part(p.data(), n);
    ASSERT_EQ(part.max, *std::max_element(x.begin(), x.end()));
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      const double want = std::exp(static_cast<double>(x[i] - part.max));
      ASSERT_NEAR(p[i], want, want * 0x1.0p-21 + 1e-37) << x[i] - part.max;
      sum += want;
    }
    // 33 additions per lane and the error of each exp.
    ASSERT_NEAR(part.sum, sum, sum * 0x1.0p-18) << n;
  }
}

TEST_P(AttentionKernelsTest, StepsAreTheScalarOnesToTheBitForAnyRowsTokensAndHeadSize) {
  for (const DataType type : kCacheTypes) {
    for (const std::size_t head_dim : {4U, 8U, 20U, 24U, 32U, 64U, 96U, 128U}) {
      if (head_dim % quant::traits(type).block_size != 0) continue;
      for (const std::size_t n_tokens : {1U, 7U, 16U, 19U, 65U}) {
        Tokens tokens(table_, type, n_tokens, head_dim, rng_);
        for (std::size_t n_rows = 1; n_rows <= 14; ++n_rows) {
          SCOPED_TRACE(fmt::format("{} dim {} tokens {} rows {}", quant::traits(type).name,
                                   head_dim, n_tokens, n_rows));
          const std::vector<float> q = random_floats(n_rows * head_dim, rng_);
          const std::size_t stride = n_tokens + 5;
          std::vector<float> got(n_rows * stride);
          std::vector<float> want(n_rows * stride);
          const std::size_t skip = rng_.below(std::min<std::size_t>(n_tokens, kKeyGroup));
          const KeyRun keys{.data = tokens.group_data(),
                            .skip = skip,
                            .n_tokens = n_tokens - skip,
                            .head_dim = head_dim,
                            .type = type};
          table_.attention_scores(q.data(), n_rows, keys, got.data(), stride);
          scalar_.attention_scores(q.data(), n_rows, keys, want.data(), stride);
          ASSERT_TRUE(same_bits(got, want)) << "scores";
          for (std::size_t r = 0; r < n_rows; ++r) {
            for (std::size_t j = 0; j < n_tokens - skip; ++j) {
              double dot = 0.0;
              double absolute = 0.0;
              for (std::size_t d = 0; d < head_dim; ++d) {
                const double product = static_cast<double>(q[r * head_dim + d]) *
                                       tokens.elements[(skip + j) * head_dim + d];
                dot += product;
                absolute += std::fabs(product);
              }
              // One rounding per element.
              ASSERT_NEAR(got[r * stride + j], dot,
                          absolute * static_cast<double>(head_dim) * 0x1.0p-24);
            }
          }
          got = random_floats(n_rows * head_dim, rng_);
          want = got;
          const std::vector<float> p = random_floats(n_rows * stride, rng_);
          const ValueRun values{
              .data = tokens.row_data(), .n_tokens = n_tokens, .head_dim = head_dim, .type = type};
          table_.attention_values(p.data(), stride, n_rows, values, got.data());
          for (std::size_t r = 0; r < n_rows; ++r) {
            for (std::size_t j = 0; j < n_tokens; ++j) {
              for (std::size_t d = 0; d < head_dim; ++d) {
                float& sum = want[r * head_dim + d];
                sum = std::fmaf(p[r * stride + j], tokens.elements[j * head_dim + d], sum);
              }
            }
          }
          ASSERT_TRUE(same_bits(got, want)) << "values";
        }
      }
    }
  }
}

// Wherever a run begins and ends, a score has the same bits.
TEST_P(AttentionKernelsTest, AScoreDoesNotDependOnItsNeighbours) {
  const std::size_t head_dim = 64;
  const std::size_t n_rows = 7;
  const std::size_t n_tokens = 39;
  for (const DataType type : kCacheTypes) {
    Tokens tokens(table_, type, n_tokens, head_dim, rng_);
    const std::vector<float> q = random_floats(n_rows * head_dim, rng_);
    const auto run = [&](std::size_t first, std::size_t n) {
      return KeyRun{.data = tokens.group_data() +
                            first / kKeyGroup * kKeyGroup * quant::row_bytes(type, head_dim),
                    .skip = first % kKeyGroup,
                    .n_tokens = n,
                    .head_dim = head_dim,
                    .type = type};
    };
    std::vector<float> all(n_rows * n_tokens);
    table_.attention_scores(q.data(), n_rows, run(0, n_tokens), all.data(), n_tokens);
    for (std::size_t first = 0; first < n_tokens; ++first) {
      for (std::size_t n = 1; first + n <= n_tokens; ++n) {
        std::vector<float> some(n_rows * n_tokens);
        const std::size_t some_rows = 1 + (first + n) % n_rows;
        table_.attention_scores(q.data(), some_rows, run(first, n), some.data(), n_tokens);
        for (std::size_t r = 0; r < some_rows; ++r) {
          ASSERT_EQ(
              std::memcmp(some.data() + r * n_tokens, all.data() + r * n_tokens + first, n * 4), 0)
              << quant::traits(type).name << " " << first << " + " << n << " row " << r;
        }
      }
    }
  }
}

TEST_P(AttentionKernelsTest, WidenedTokensAreTheDequantizedOnes) {
  for (const DataType type : kCacheTypes) {
    for (const std::size_t head_dim : {8U, 32U, 96U}) {
      if (head_dim % quant::traits(type).block_size != 0) continue;
      const std::size_t n_tokens = 3 * kKeyGroup;
      Tokens tokens(table_, type, n_tokens, head_dim, rng_);
      std::vector<float> got(n_tokens * head_dim);
      table_.widen_values(type, tokens.row_data(), got.size(), got.data());
      ASSERT_TRUE(same_bits(got, tokens.elements)) << quant::traits(type).name;
      table_.widen_keys(type, tokens.group_data(), 3, head_dim, got.data());
      for (std::size_t t = 0; t < n_tokens; ++t) {
        for (std::size_t d = 0; d < head_dim; ++d) {
          const std::size_t at = (t / kKeyGroup * head_dim + d) * kKeyGroup + t % kKeyGroup;
          ASSERT_EQ(got[at], tokens.elements[t * head_dim + d])
              << quant::traits(type).name << " token " << t << " element " << d;
        }
      }
    }
  }
}

TEST_P(AttentionKernelsTest, MergedPartsAreThoseOfBothTogether) {
  for (const std::size_t n : {1U, 5U, 8U, 30U, 64U}) {
    for (const float distance : {0.0F, 3.0F, -3.0F, 80.0F, -200.0F}) {
      const std::vector<float> a = random_floats(n, rng_);
      const std::vector<float> b = random_floats(n, rng_);
      std::vector<float> out = a;
      SoftmaxPart running{.max = 1.5F, .sum = 7.0F};
      table_.merge_part(b.data(), {.max = 1.5F + distance, .sum = 2.0F}, n, out.data(), running);
      const double scale_a = std::exp(std::min(0.0, -static_cast<double>(distance)));
      const double scale_b = std::exp(std::min(0.0, static_cast<double>(distance)));
      ASSERT_EQ(running.max, std::max(1.5F, 1.5F + distance));
      ASSERT_NEAR(running.sum, 7.0 * scale_a + 2.0 * scale_b, 9.0 * 0x1.0p-20);
      for (std::size_t d = 0; d < n; ++d) {
        const double x = static_cast<double>(a[d]) * scale_a;
        const double y = static_cast<double>(b[d]) * scale_b;
        ASSERT_NEAR(out[d], x + y, (std::fabs(x) + std::fabs(y)) * 0x1.0p-20 + 1e-30) << distance;
      }
    }
  }
}

TEST_P(AttentionKernelsTest, CachedBlocksAreTheNearestMultiplesOfTheirScale) {
  for (const float size : {1.0F, 1e-3F, 1e4F, 1e-9F, 0.0F}) {
    std::vector<float> x = random_floats(256, rng_);
    for (float& v : x) v *= size;
    for (const DataType type : {DataType::kQ8_0, DataType::kQ4_0}) {
      const std::vector<std::byte> row = cached_row(table_, type, x);
      std::vector<float> back(x.size());
      quant::dequantize_row(type, row.data(), x.size(), back.data());
      for (std::size_t b = 0; b < x.size(); b += 32) {
        float largest = 0.0F;
        for (std::size_t i = b; i < b + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
        // Half a step, but in Q4_0 a whole one at the end opposite the largest; 2^-11 for the scale
        // as F16, and what is below the smallest F16.
        const float step = type == DataType::kQ8_0 ? largest / 127.0F / 2.0F : largest / 8.0F;
        const float bound = step + largest * 0x1.0p-10F + 127 * 0x1.0p-25F;
        for (std::size_t i = b; i < b + 32; ++i) {
          ASSERT_NEAR(back[i], x[i], bound) << quant::traits(type).name << " of " << size;
        }
      }
    }
  }
}

TEST_P(AttentionKernelsTest, CachedBlocksAreTheScalarOnesToTheBit) {
  for (const float size : {1.0F, 1e-3F, 1e4F, 1e-9F, 0.0F, 1e30F}) {
    std::vector<float> x = random_floats(128, rng_);
    for (float& v : x) v *= size;
    x[5] = 3.0F * size;  // Ties of either sign, and halves.
    x[17] = -3.0F * size;
    x[40] = 127.5F * size;
    x[70] = NAN;
    x[100] = -HUGE_VALF;
    for (const DataType type : {DataType::kQ8_0, DataType::kQ4_0}) {
      ASSERT_EQ(cached_row(table_, type, x), cached_row(scalar_, type, x))
          << quant::traits(type).name << " of " << size;
    }
    const std::vector<float> no_numbers(32, NAN);
    ASSERT_EQ(cached_row(table_, DataType::kQ8_0, no_numbers),
              cached_row(scalar_, DataType::kQ8_0, no_numbers));
  }
}

TEST_P(AttentionKernelsTest, CachedBlocksAreFiniteWhateverTheyAreMadeOf) {
  std::vector<float> x = random_floats(32, rng_);
  x[3] = NAN;
  x[9] = HUGE_VALF;
  x[20] = -1e30F;
  for (const DataType type : {DataType::kQ8_0, DataType::kQ4_0}) {
    const std::vector<std::byte> row = cached_row(table_, type, x);
    std::vector<float> back(x.size());
    quant::dequantize_row(type, row.data(), x.size(), back.data());
    for (const float v : back) ASSERT_TRUE(std::isfinite(v));
    EXPECT_EQ(back[3], 0.0F);
    EXPECT_GT(back[9], 50000.0F);
    EXPECT_LT(back[20], -50000.0F);
  }
}

}  // namespace
}  // namespace recua::kernels
