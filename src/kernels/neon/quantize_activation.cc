// Rounds 16 numbers at a time; a first pass over the block finds its maximum.
#include "kernels/activation.h"
#include "kernels/neon/common.h"

namespace recua::kernels::neon {
namespace {

RECUA_NEON_INLINE float max_abs(const float* x, std::size_t n) {
  float32x4_t max = vdupq_n_f32(0.0F);
  for (std::size_t i = 0; i < n; i += 4) max = larger(vabsq_f32(vld1q_f32(x + i)), max);
  return max_lanes(max);
}

// Four numbers times inverse, to the nearest (ties to even) within [-127, 127]; a NaN gives -127.
RECUA_NEON_INLINE int16x4_t round4(const float* x, float inverse) {
  const float32x4_t nearest = vrndnq_f32(vmulq_n_f32(vld1q_f32(x), inverse));
  const float32x4_t from_below = larger(nearest, vdupq_n_f32(-127.0F));
  return vmovn_s32(vcvtq_s32_f32(vminq_f32(from_below, vdupq_n_f32(127.0F))));
}

RECUA_NEON_INLINE int8x16_t round16(const float* x, float inverse) {
  const int16x8_t low = vcombine_s16(round4(x, inverse), round4(x + 4, inverse));
  const int16x8_t high = vcombine_s16(round4(x + 8, inverse), round4(x + 12, inverse));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
}

// Sums of 16 bytes: those of elements 0 1 4 5 8 9 12 13, and those of the others.
struct PairSums {
  std::int16_t first;
  std::int16_t second;
};
RECUA_NEON_INLINE PairSums sum_pairs(int8x16_t q) {
  const int16x8_t pairs = vpaddlq_s8(q);
  return {vaddv_s16(vget_low_s16(vuzp1q_s16(pairs, pairs))),
          vaddv_s16(vget_low_s16(vuzp2q_s16(pairs, pairs)))};
}

}  // namespace

void quantize_q8x32(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + n);
  float* s = d + n / 32;
  auto* fours = reinterpret_cast<std::int16_t*>(s + n / 32);
  for (std::size_t b = 0; b < n / 32; ++b) {
    const float max = max_abs(x + 32 * b, 32);
    const float inverse = max < kTiny ? 0.0F : 127.0F / max;
    PairSums sums[2];
    for (std::size_t i = 0; i < 2; ++i) {
      const int8x16_t bytes = round16(x + 32 * b + 16 * i, inverse);
      vst1q_s8(q + 32 * b + 16 * i, bytes);
      sums[i] = sum_pairs(bytes);
    }
    const int first = sums[0].first + sums[1].first;
    const int second = sums[0].second + sums[1].second;
    d[b] = max < kTiny ? 0.0F : max / 127.0F;
    s[b] = d[b] * static_cast<float>(first + second);
    fours[2 * b] = static_cast<std::int16_t>(-4 * first);
    fours[2 * b + 1] = static_cast<std::int16_t>(-4 * second);
  }
}

void quantize_q8x256(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + n);
  auto* sums = reinterpret_cast<std::int16_t*>(out + n + n / 256 * 4);
  std::int16_t* sums32 = sums + n / 16;
  std::int16_t* offsets = sums32 + n / 32;
  for (std::size_t b = 0; b < n / 256; ++b) {
    const float* const block = x + 256 * b;
    const float max = max_abs(block, 256);
    const float inverse = max < kTiny ? 0.0F : 127.0F / max;
    for (std::size_t g = 0; g < 16; ++g) {
      const int8x16_t bytes = round16(block + 16 * g, inverse);
      vst1q_s8(q + 256 * b + 16 * g, bytes);
      const PairSums pair = sum_pairs(bytes);
      const int sum = pair.first + pair.second;
      sums[16 * b + sum_index(g)] = static_cast<std::int16_t>(sum);
      std::int16_t& both = sums32[8 * b + g / 2];
      both = static_cast<std::int16_t>(g % 2 == 0 ? sum : both + sum);
      offsets[32 * b + 2 * g] = static_cast<std::int16_t>(-32 * pair.first);
      offsets[32 * b + 2 * g + 1] = static_cast<std::int16_t>(-32 * pair.second);
    }
    d[b] = max < kTiny ? 0.0F : max / 127.0F;
  }
}

}  // namespace recua::kernels::neon
