#include <cmath>

#include "kernels/activation.h"

namespace recua::kernels::scalar {
namespace {

// Rounds a block of n elements; returns d. NaN and infinity give some value in range and a d that
// is not finite, so they stay visible in the product.
float quantize_block(const float* x, std::size_t n, std::int8_t* q) {
  float max = 0.0F;
  for (std::size_t i = 0; i < n; ++i) max = std::fabs(x[i]) > max ? std::fabs(x[i]) : max;
  if (max < kTiny) {
    for (std::size_t i = 0; i < n; ++i) q[i] = 0;
    return 0.0F;
  }
  const float inverse = 127.0F / max;
  for (std::size_t i = 0; i < n; ++i) {
    const float rounded = std::nearbyintf(x[i] * inverse);  // The default mode: ties to even.
    q[i] = rounded >= -127.0F ? static_cast<std::int8_t>(rounded <= 127.0F ? rounded : 127.0F)
                              : std::int8_t{-127};
  }
  return max / 127.0F;
}

// Of every four of n elements the first two (pair 0) or the others (pair 1).
int sum_of_pairs(const std::int8_t* q, std::size_t n, std::size_t pair) {
  int sum = 0;
  for (std::size_t i = 2 * pair; i < n; i += 4) sum += q[i] + q[i + 1];
  return sum;
}

int sum_of(const std::int8_t* q, std::size_t n) {
  int sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += q[i];
  return sum;
}

}  // namespace

void quantize_q8x32(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + n);
  float* s = d + n / 32;
  auto* fours = reinterpret_cast<std::int16_t*>(s + n / 32);
  for (std::size_t b = 0; b < n / 32; ++b) {
    d[b] = quantize_block(x + 32 * b, 32, q + 32 * b);
    const int sum = sum_of(q + 32 * b, 32);
    s[b] = d[b] * static_cast<float>(sum);
    for (std::size_t pair = 0; pair < 2; ++pair) {
      fours[2 * b + pair] = static_cast<std::int16_t>(-4 * sum_of_pairs(q + 32 * b, 32, pair));
    }
  }
}

void quantize_q8x256(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* d = reinterpret_cast<float*>(out + n);
  auto* sums = reinterpret_cast<std::int16_t*>(out + n + n / 256 * 4);
  std::int16_t* sums32 = sums + n / 16;
  std::int16_t* offsets = sums32 + n / 32;
  for (std::size_t b = 0; b < n / 256; ++b) {
    d[b] = quantize_block(x + 256 * b, 256, q + 256 * b);
    for (std::size_t g = 0; g < 16; ++g) {
      sums[16 * b + sum_index(g)] = static_cast<std::int16_t>(sum_of(q + 256 * b + 16 * g, 16));
    }
    for (std::size_t g = 0; g < 8; ++g) {
      sums32[8 * b + g] = static_cast<std::int16_t>(sum_of(q + 256 * b + 32 * g, 32));
    }
    for (std::size_t g = 0; g < 16; ++g) {
      const std::int8_t* const group = q + 256 * b + 16 * g;
      for (std::size_t pair = 0; pair < 2; ++pair) {
        offsets[32 * b + 2 * g + pair] =
            static_cast<std::int16_t>(-32 * sum_of_pairs(group, 16, pair));
      }
    }
  }
}

void quantize_q16x32(const float* x, std::size_t n, std::byte* out) {
  auto* q = reinterpret_cast<std::int16_t*>(out);
  auto* d = reinterpret_cast<float*>(out + 2 * n);
  for (std::size_t b = 0; b < n / 32; ++b) {
    std::int8_t block[32];
    d[b] = quantize_block(x + 32 * b, 32, block);
    for (std::size_t i = 0; i < 32; ++i) {
      q[32 * b + i / 2 + i % 2 * 16] = static_cast<std::int16_t>(int{block[i]});
    }
  }
}

void quantize_blocks32(const float* x, std::size_t n, std::byte* out) {
  auto* const blocks = reinterpret_cast<ActivationBlock32*>(out);
  for (std::size_t b = 0; b < n / 32; ++b) {
    blocks[b].d = quantize_block(x + 32 * b, 32, blocks[b].q);
    blocks[b].offset = -128 * sum_of(blocks[b].q, 32);
  }
}

void quantize_blocks256(const float* x, std::size_t n, std::byte* out) {
  auto* const blocks = reinterpret_cast<ActivationBlock256*>(out);
  for (std::size_t b = 0; b < n / 256; ++b) {
    ActivationBlock256& block = blocks[b];
    block.d = quantize_block(x + 256 * b, 256, block.q);
    for (std::size_t g = 0; g < 8; ++g) {
      block.sums32[g] = static_cast<std::int16_t>(sum_of(block.q + 32 * g, 32));
    }
    for (std::size_t g = 0; g < 16; ++g) block.offsets[g] = -32 * sum_of(block.q + 16 * g, 16);
  }
}

}  // namespace recua::kernels::scalar
