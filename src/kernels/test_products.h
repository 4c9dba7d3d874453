#pragma once
/// For tests of the matmul kernels: activations of every kind, a call on some rows, and what it
/// should give.

#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/kernel_table.h"
#include "kernels/random_weights.h"
#include "quant/dequantize.h"

namespace recua::kernels {

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// For fixtures whose SetUp() skips sets that this CPU lacks: they still need some table until
/// then.
inline const KernelTable& kernel_table_or_scalar(sys::InstructionSet set) {
  return kernel_table(sys::supported(set) ? set : sys::InstructionSet::kScalar);
}

/// One row of activations as kernels of that kind take it.
inline void quantize(const KernelTable& table, ActivationKind kind, const float* x, std::size_t n,
                     std::byte* to) {
  if (kind == ActivationKind::kF32) {
    std::memcpy(to, x, n * sizeof(float));
  } else {
    table.quantize(kind)(x, n, to);
  }
}

/// Rows of activations as a kernel takes them.
struct Activations {
  Activations(const KernelTable& table, ActivationKind kind, std::size_t n_tokens, std::size_t n,
              const std::vector<float>& values)
      : row_bytes(activation_row_bytes(kind, n)), bytes(n_tokens * row_bytes) {
    for (std::size_t t = 0; t < n_tokens; ++t) {
      const float* x = values.data() + t * n;
      std::byte* const to = bytes.data() + t * row_bytes;
      quantize(table, kind, x, n, to);
      rows.push_back(to);
    }
  }
  /// Element i of a row, as the products see it.
  [[nodiscard]] double value(ActivationKind kind, std::size_t t, std::size_t i,
                             std::size_t n) const {
    if (kind == ActivationKind::kF32) return reinterpret_cast<const float*>(rows[t])[i];
    if (kind == ActivationKind::kQ16x32) {
      const std::size_t place = i / 32 * 32 + i % 32 / 2 + i % 2 * 16;
      return static_cast<double>(q16_values(rows[t])[place]) * q16_scales(rows[t], n)[i / 32];
    }
    if (kind == ActivationKind::kBlocks32) {
      const ActivationBlock32& block = activation_blocks32(rows[t])[i / 32];
      return static_cast<double>(block.q[i % 32]) * block.d;
    }
    if (kind == ActivationKind::kBlocks256) {
      const ActivationBlock256& block = activation_blocks256(rows[t])[i / 256];
      return static_cast<double>(block.q[i % 256]) * block.d;
    }
    const std::size_t block = kind == ActivationKind::kQ8x32 ? 32 : 256;
    return static_cast<double>(q8_values(rows[t])[i]) * q8_scales(rows[t], n)[i / block];
  }

  std::size_t row_bytes;
  std::vector<std::byte> bytes;
  std::vector<const std::byte*> rows;
};

inline std::vector<float> multiply(MatmulFn kernel, const std::byte* w, std::size_t w_stride,
                                   std::size_t n_rows, std::size_t n_in,
                                   std::span<const std::byte* const> x) {
  std::vector<float> out(n_rows * x.size(), NAN);
  std::vector<float*> out_rows;
  for (std::size_t t = 0; t < x.size(); ++t) out_rows.push_back(out.data() + t * n_rows);
  kernel({.w = w,
          .w_stride = w_stride,
          .n_rows = n_rows,
          .n_in = n_in,
          .x = x.data(),
          .out = out_rows.data(),
          .out_offset = 0,
          .n_tokens = x.size()});
  return out;
}

/// out [n_tokens, n_rows] is what float64 sums of the dequantized weights and x give, within what
/// f32 sums may round.
inline void expect_products(const std::vector<float>& out, quant::DataType type,
                            const RandomWeights& weights, std::size_t n_rows, std::size_t n_in,
                            ActivationKind kind, const Activations& x) {
  const std::size_t n_tokens = x.rows.size();
  std::vector<float> row(n_in);
  for (std::size_t r = 0; r < n_rows; ++r) {
    quant::dequantize_row(type, weights.bytes.data() + r * quant::row_bytes(type, n_in), n_in,
                          row.data());
    for (std::size_t t = 0; t < n_tokens; ++t) {
      double want = 0.0;
      double absolute = 0.0;
      for (std::size_t i = 0; i < n_in; ++i) {
        const double value = x.value(kind, t, i, n_in);
        want += row[i] * value;
        absolute += std::fabs(value) * weights.part_max;
      }
      // 4: the dequantized weights themselves are rounded.
      const double bound = (static_cast<double>(n_in) + 4) * 0x1.0p-23 * absolute;
      ASSERT_NEAR(out[t * n_rows + r], want, bound)
          << quant::traits(type).name << " n " << n_in << " row " << r << "/" << n_rows << " token "
          << t << "/" << n_tokens;
    }
  }
}

}  // namespace recua::kernels
