// The types of 256: first each group on its own, then one pair of scales for all groups' scales,
// then in turns: the integers for those scales, the scales for those integers (both can only help,
// apart from the rounding to F16, so the best of all turns is kept).
#include <array>

#include "quant/fit.h"
#include "quant/quantize_internal.h"

namespace recua::quant {
namespace {

constexpr int kSteps = 9;
constexpr int kTurns = 3;

using Integers = std::array<std::int8_t, kBlock256>;

/// value = d * scale[g] * q, groups of 16.
struct SymmetricBlock {
  std::uint16_t d = 0;
  std::array<int, 16> scales{};
  Integers q{};
};

/// Integers for the block's d and scales; returns the weighted squared error.
float round_symmetric(const float* x, const float* w, int q_min, int q_max, SymmetricBlock& b) {
  const float d = f16_to_f32(b.d);
  float error = 0.0F;
  for (std::size_t g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(b.scales[g]);
    const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
    for (std::size_t i = 16 * g; i < 16 * g + 16; ++i) {
      const float q = nearest(
          std::min(std::max(x[i] * inverse, static_cast<float>(q_min)), static_cast<float>(q_max)));
      const float miss = scale * q - x[i];
      error += w[i] * miss * miss;
      b.q[i] = static_cast<std::int8_t>(q);
    }
  }
  return error;
}

/// scale_min is the negative end of the stored scales: -32 or -128.
SymmetricBlock fit_symmetric_block(const float* x, int q_min, int q_max, int scale_min) {
  std::array<float, kBlock256> w{};
  std::array<float, 16> group_scales{};
  float largest = 0.0F;
  for (std::size_t g = 0; g < 16; ++g) {
    error_weights(x + 16 * g, 16, w.data() + 16 * g);
    group_scales[g] = fit_scale<16>(x + 16 * g, w.data() + 16 * g, q_min, q_max, kSteps).scale;
    if (std::fabs(group_scales[g]) > std::fabs(largest)) largest = group_scales[g];
  }
  SymmetricBlock block;
  block.d = saturated_f16(largest / static_cast<float>(scale_min));
  const float d = f16_to_f32(block.d);
  if (d == 0.0F) return block;
  for (std::size_t g = 0; g < 16; ++g) {
    const float scale = group_scales[g] / d;
    block.scales[g] = static_cast<int>(nearest(std::min(
        std::max(scale, static_cast<float>(scale_min)), static_cast<float>(-scale_min - 1))));
  }

  float error = round_symmetric(x, w.data(), q_min, q_max, block);
  for (int turn = 0; turn < kTurns; ++turn) {
    // The best d for these integers: sum(w x a) / sum(w a a) with a = scale q.
    float wxa = 0.0F;
    float waa = 0.0F;
    for (std::size_t i = 0; i < kBlock256; ++i) {
      const auto a = static_cast<float>(block.scales[i / 16] * block.q[i]);
      wxa += w[i] * x[i] * a;
      waa += w[i] * a * a;
    }
    if (waa <= 0.0F) break;
    SymmetricBlock next = block;
    next.d = saturated_f16(wxa / waa);
    if (next.d == block.d) break;
    const float next_error = round_symmetric(x, w.data(), q_min, q_max, next);
    if (next_error >= error) break;
    error = next_error;
    block = next;
  }
  return block;
}

/// value = d * scale[g] * q - dmin * min[g], groups of kGroup.
template <std::size_t kGroup>
struct AffineBlock {
  std::uint16_t d = 0;
  std::uint16_t dmin = 0;
  std::array<int, kBlock256 / kGroup> scales{};
  std::array<int, kBlock256 / kGroup> mins{};
  Integers q{};
};

template <std::size_t kGroup>
float round_affine(const float* x, const float* w, int q_max, AffineBlock<kGroup>& b) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  float error = 0.0F;
  for (std::size_t g = 0; g < kBlock256 / kGroup; ++g) {
    const float scale = d * static_cast<float>(b.scales[g]);
    const float min = dmin * static_cast<float>(b.mins[g]);
    const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
    for (std::size_t i = kGroup * g; i < kGroup * (g + 1); ++i) {
      const float q =
          nearest(std::min(std::max((x[i] + min) * inverse, 0.0F), static_cast<float>(q_max)));
      const float miss = scale * q - min - x[i];
      error += w[i] * miss * miss;
      b.q[i] = static_cast<std::int8_t>(q);
    }
  }
  return error;
}

/// The best d and dmin for the block's integers. False: they say nothing about one of them.
template <std::size_t kGroup>
bool refit_affine(const float* x, const float* w, AffineBlock<kGroup>& b) {
  // sum w (d a - dmin m - x)^2 with a = scale q; both derivatives zero, solved by Cramer's rule.
  double waa = 0.0;
  double wam = 0.0;
  double wmm = 0.0;
  double wax = 0.0;
  double wmx = 0.0;
  for (std::size_t g = 0; g < kBlock256 / kGroup; ++g) {
    float qq = 0.0F;
    float q1 = 0.0F;
    float w1 = 0.0F;
    float qx = 0.0F;
    float x1 = 0.0F;
    for (std::size_t i = kGroup * g; i < kGroup * (g + 1); ++i) {
      const auto q = static_cast<float>(b.q[i]);
      qq += w[i] * q * q;
      q1 += w[i] * q;
      w1 += w[i];
      qx += w[i] * q * x[i];
      x1 += w[i] * x[i];
    }
    const double scale = b.scales[g];
    const double min = b.mins[g];
    waa += scale * scale * qq;
    wam += scale * min * q1;
    wmm += min * min * w1;
    wax += scale * qx;
    wmx += min * x1;
  }
  double d = 0.0;
  double dmin = 0.0;
  const double determinant = waa * wmm - wam * wam;
  if (wmm == 0.0 && waa > 0.0) {
    d = wax / waa;
  } else if (determinant > 1e-9 * waa * wmm) {
    d = (wmm * wax - wam * wmx) / determinant;
    dmin = (wam * wax - waa * wmx) / determinant;
  } else {
    return false;
  }
  b.d = saturated_f16(static_cast<float>(d));
  b.dmin = saturated_f16(static_cast<float>(dmin));
  return true;
}

template <std::size_t kGroup>
AffineBlock<kGroup> fit_affine_block(const float* x, int q_max, int scale_max) {
  constexpr std::size_t kGroups = kBlock256 / kGroup;
  std::array<float, kBlock256> w{};
  std::array<ScaleMinFit, kGroups> fits;
  float scale_largest = 0.0F;
  float min_largest = 0.0F;
  for (std::size_t g = 0; g < kGroups; ++g) {
    error_weights(x + kGroup * g, kGroup, w.data() + kGroup * g);
    fits[g] = fit_scale_min<kGroup>(x + kGroup * g, w.data() + kGroup * g, q_max, true, kSteps);
    scale_largest = std::max(scale_largest, fits[g].scale);
    min_largest = std::max(min_largest, fits[g].min);
  }
  AffineBlock<kGroup> block;
  block.d = saturated_f16(scale_largest / static_cast<float>(scale_max));
  block.dmin = saturated_f16(min_largest / static_cast<float>(scale_max));
  const auto scaled = [scale_max](float v, float unit) {
    if (unit == 0.0F) return 0;
    return static_cast<int>(nearest(std::min(v / unit, static_cast<float>(scale_max))));
  };
  for (std::size_t g = 0; g < kGroups; ++g) {
    block.scales[g] = scaled(fits[g].scale, f16_to_f32(block.d));
    block.mins[g] = scaled(fits[g].min, f16_to_f32(block.dmin));
  }

  float error = round_affine<kGroup>(x, w.data(), q_max, block);
  for (int turn = 0; turn < kTurns; ++turn) {
    AffineBlock<kGroup> next = block;
    if (!refit_affine<kGroup>(x, w.data(), next)) break;
    if (next.d == block.d && next.dmin == block.dmin) break;
    const float next_error = round_affine<kGroup>(x, w.data(), q_max, next);
    if (next_error >= error) break;
    error = next_error;
    block = next;
  }
  return block;
}

void or_into(std::uint8_t& byte, int bits) { byte = static_cast<std::uint8_t>(byte | bits); }

/// Two bits of each of 256 elements, four elements in a byte (BlockQ2_K::qs says where).
void put_two_bits(std::array<std::uint8_t, 64>& bytes, std::size_t i, int bits) {
  or_into(bytes[32 * (i / 128) + i % 32], (bits & 3) << (2 * (i % 128 / 32)));
}

/// Four bits of each of 256 elements (BlockQ4_K::qs says where).
void put_four_bits(std::array<std::uint8_t, 128>& bytes, std::size_t i, int bits) {
  or_into(bytes[32 * (i / 64) + i % 32], (bits & 15) << (4 * (i % 64 / 32)));
}

}  // namespace

void quantize_block(const float* x, BlockQ2_K& out) {
  const AffineBlock<16> fit = fit_affine_block<16>(x, 3, 15);
  out = BlockQ2_K{};
  out.d = fit.d;
  out.dmin = fit.dmin;
  for (std::size_t g = 0; g < 16; ++g) or_into(out.scales[g], fit.scales[g] | (fit.mins[g] << 4));
  for (std::size_t i = 0; i < kBlock256; ++i) put_two_bits(out.qs, i, fit.q[i]);
}

void quantize_block(const float* x, BlockQ3_K& out) {
  const SymmetricBlock fit = fit_symmetric_block(x, -4, 3, -32);
  out = BlockQ3_K{};
  out.d = fit.d;
  for (std::size_t g = 0; g < 16; ++g) set_scale_q3_k(out.scales, g, fit.scales[g] + 32);
  for (std::size_t i = 0; i < kBlock256; ++i) {
    const int q = fit.q[i] + 4;
    put_two_bits(out.qs, i, q);
    or_into(out.hmask[i % 32], (q >> 2) << (i / 32));
  }
}

void quantize_block(const float* x, BlockQ4_K& out) {
  const AffineBlock<32> fit = fit_affine_block<32>(x, 15, 63);
  out = BlockQ4_K{};
  out.d = fit.d;
  out.dmin = fit.dmin;
  for (std::size_t g = 0; g < 8; ++g) {
    set_scale_min_k4(out.scales, g,
                     {.scale = static_cast<std::uint8_t>(fit.scales[g]),
                      .min = static_cast<std::uint8_t>(fit.mins[g])});
  }
  for (std::size_t i = 0; i < kBlock256; ++i) put_four_bits(out.qs, i, fit.q[i]);
}

void quantize_block(const float* x, BlockQ5_K& out) {
  const AffineBlock<32> fit = fit_affine_block<32>(x, 31, 63);
  out = BlockQ5_K{};
  out.d = fit.d;
  out.dmin = fit.dmin;
  for (std::size_t g = 0; g < 8; ++g) {
    set_scale_min_k4(out.scales, g,
                     {.scale = static_cast<std::uint8_t>(fit.scales[g]),
                      .min = static_cast<std::uint8_t>(fit.mins[g])});
  }
  for (std::size_t i = 0; i < kBlock256; ++i) {
    put_four_bits(out.qs, i, fit.q[i]);
    or_into(out.qh[i % 32], (fit.q[i] >> 4) << (i / 32));
  }
}

void quantize_block(const float* x, BlockQ6_K& out) {
  const SymmetricBlock fit = fit_symmetric_block(x, -32, 31, -128);
  out = BlockQ6_K{};
  out.d = fit.d;
  for (std::size_t g = 0; g < 16; ++g) out.scales[g] = static_cast<std::int8_t>(fit.scales[g]);
  for (std::size_t i = 0; i < kBlock256; ++i) {
    const int q = fit.q[i] + 32;
    or_into(out.ql[64 * (i / 128) + i % 64], (q & 15) << (4 * (i % 128 / 64)));
    put_two_bits(out.qh, i, q >> 4);
  }
}

}  // namespace recua::quant
