#include "quant/dequantize.h"

#include <cstring>

#include "base/check.h"
#include "quant/blocks.h"
#include "quant/half.h"

namespace recua::quant {
namespace {

void dequantize(const BlockQ8_0& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (std::size_t i = 0; i < 32; ++i) out[i] = d * static_cast<float>(b.q[i]);
}

void dequantize(const BlockQ4_0& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((b.qs[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((b.qs[i] >> 4) - 8);
  }
}

void dequantize(const BlockQ4_1& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float m = f16_to_f32(b.m);
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(b.qs[i] & 15) + m;
    out[i + 16] = d * static_cast<float>(b.qs[i] >> 4) + m;
  }
}

/// Bit 4 of element i of a Q5_0 or Q5_1 block, in place.
int fifth_bit(const std::array<std::uint8_t, 4>& qh, std::size_t i) {
  return ((qh[i / 8] >> (i % 8)) & 1) << 4;
}

void dequantize(const BlockQ5_0& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(((b.qs[i] & 15) | fifth_bit(b.qh, i)) - 16);
    out[i + 16] = d * static_cast<float>(((b.qs[i] >> 4) | fifth_bit(b.qh, i + 16)) - 16);
  }
}

void dequantize(const BlockQ5_1& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float m = f16_to_f32(b.m);
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((b.qs[i] & 15) | fifth_bit(b.qh, i)) + m;
    out[i + 16] = d * static_cast<float>((b.qs[i] >> 4) | fifth_bit(b.qh, i + 16)) + m;
  }
}

void dequantize(const BlockQ2_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (std::size_t g = 0; g < 16; ++g) {  // Group g is half h, bit pair j, left or right 16 bytes.
    const float scale = d * static_cast<float>(b.scales[g] & 15);
    const float min = dmin * static_cast<float>(b.scales[g] >> 4);
    const std::uint8_t* q = b.qs.data() + 32 * (g / 8) + 16 * (g % 2);
    const std::size_t shift = 2 * (g % 8 / 2);
    for (std::size_t l = 0; l < 16; ++l) {
      out[16 * g + l] = scale * static_cast<float>((q[l] >> shift) & 3) - min;
    }
  }
}

void dequantize(const BlockQ3_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (std::size_t g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(scale_q3_k(b.scales, g) - 32);
    const std::uint8_t* q = b.qs.data() + 32 * (g / 8) + 16 * (g % 2);
    const std::uint8_t* high = b.hmask.data() + 16 * (g % 2);
    const std::size_t shift = 2 * (g % 8 / 2);
    const std::size_t high_bit = g / 2;
    for (std::size_t l = 0; l < 16; ++l) {
      const int value = ((q[l] >> shift) & 3) | (((high[l] >> high_bit) & 1) << 2);
      out[16 * g + l] = scale * static_cast<float>(value - 4);
    }
  }
}

void dequantize(const BlockQ4_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (std::size_t g = 0; g < 8; ++g) {
    const ScaleMin sm = scale_min_k4(b.scales, g);
    const float scale = d * static_cast<float>(sm.scale);
    const float min = dmin * static_cast<float>(sm.min);
    const std::uint8_t* q = b.qs.data() + 32 * (g / 2);
    const std::size_t shift = 4 * (g % 2);
    for (std::size_t l = 0; l < 32; ++l) {
      out[32 * g + l] = scale * static_cast<float>((q[l] >> shift) & 15) - min;
    }
  }
}

void dequantize(const BlockQ5_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  const float dmin = f16_to_f32(b.dmin);
  for (std::size_t g = 0; g < 8; ++g) {
    const ScaleMin sm = scale_min_k4(b.scales, g);
    const float scale = d * static_cast<float>(sm.scale);
    const float min = dmin * static_cast<float>(sm.min);
    const std::uint8_t* q = b.qs.data() + 32 * (g / 2);
    const std::size_t shift = 4 * (g % 2);
    for (std::size_t l = 0; l < 32; ++l) {
      const int value = ((q[l] >> shift) & 15) | (((b.qh[l] >> g) & 1) << 4);
      out[32 * g + l] = scale * static_cast<float>(value) - min;
    }
  }
}

void dequantize(const BlockQ6_K& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (std::size_t g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(b.scales[g]);
    const std::size_t half = g / 8;
    const std::size_t in_half = 16 * (g % 8);  // First element of the group in its half, 0..112.
    const std::uint8_t* low = b.ql.data() + 64 * half + in_half % 64;
    const std::uint8_t* high = b.qh.data() + 32 * half + in_half % 32;
    const std::size_t low_shift = 4 * (in_half / 64);
    const std::size_t high_shift = 2 * (in_half / 32);
    for (std::size_t l = 0; l < 16; ++l) {
      const int value = ((low[l] >> low_shift) & 15) | (((high[l] >> high_shift) & 3) << 4);
      out[16 * g + l] = scale * static_cast<float>(value - 32);
    }
  }
}

// Numbers from a table of 16: low nibbles are elements 0..15, high ones 16..31.
template <class Qs>
void look_up(const Qs& qs, const std::int8_t* table, float d, float* out) {
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(table[qs[i] & 15]);
    out[i + 16] = d * static_cast<float>(table[qs[i] >> 4]);
  }
}

void dequantize(const BlockIQ4_NL& b, float* out) {
  look_up(b.qs, kIQ4Values, f16_to_f32(b.d), out);
}

void dequantize(const BlockIQ4_XS& b, float* out) {
  const float d = f16_to_f32(b.d);
  for (std::size_t g = 0; g < 8; ++g) {
    const float scale = d * static_cast<float>(scale_iq4_xs(b, g) - 32);
    look_up(b.qs.data() + 16 * g, kIQ4Values, scale, out + 32 * g);
  }
}

void dequantize(const BlockMXFP4& b, float* out) {
  look_up(b.qs, kFp4Values, half_of_e8m0(b.e), out);
}

template <class Block>
void dequantize_blocks(const std::byte* blocks, std::size_t n, std::size_t block_size, float* out) {
  for (std::size_t i = 0; i < n / block_size; ++i) {
    Block block;  // A copy, since the bytes may lie at an odd address.
    std::memcpy(&block, blocks + i * sizeof(Block), sizeof(Block));
    dequantize(block, out + i * block_size);
  }
}

template <float (*kWiden)(std::uint16_t)>
void widen_row(const std::byte* bytes, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes + 2 * i, 2);
    out[i] = kWiden(bits);
  }
}

}  // namespace

void dequantize_row(DataType type, const std::byte* blocks, std::size_t n, float* out) {
  const std::size_t size = traits(type).block_size;
  RECUA_CHECK(n % size == 0);
  if (n == 0) return;
  switch (type) {
    case DataType::kF32:
      std::memcpy(out, blocks, n * sizeof(float));
      return;
    case DataType::kF16:
      return widen_row<f16_to_f32>(blocks, n, out);
    case DataType::kBF16:
      return widen_row<bf16_to_f32>(blocks, n, out);
    case DataType::kQ8_0:
      return dequantize_blocks<BlockQ8_0>(blocks, n, size, out);
    case DataType::kQ4_0:
      return dequantize_blocks<BlockQ4_0>(blocks, n, size, out);
    case DataType::kQ4_1:
      return dequantize_blocks<BlockQ4_1>(blocks, n, size, out);
    case DataType::kQ5_0:
      return dequantize_blocks<BlockQ5_0>(blocks, n, size, out);
    case DataType::kQ5_1:
      return dequantize_blocks<BlockQ5_1>(blocks, n, size, out);
    case DataType::kQ2_K:
      return dequantize_blocks<BlockQ2_K>(blocks, n, size, out);
    case DataType::kQ3_K:
      return dequantize_blocks<BlockQ3_K>(blocks, n, size, out);
    case DataType::kQ4_K:
      return dequantize_blocks<BlockQ4_K>(blocks, n, size, out);
    case DataType::kQ5_K:
      return dequantize_blocks<BlockQ5_K>(blocks, n, size, out);
    case DataType::kQ6_K:
      return dequantize_blocks<BlockQ6_K>(blocks, n, size, out);
    case DataType::kIQ4_NL:
      return dequantize_blocks<BlockIQ4_NL>(blocks, n, size, out);
    case DataType::kIQ4_XS:
      return dequantize_blocks<BlockIQ4_XS>(blocks, n, size, out);
    case DataType::kMXFP4:
      return dequantize_blocks<BlockMXFP4>(blocks, n, size, out);
  }
  RECUA_CHECK(false && "a DataType outside its enumerators");
}

}  // namespace recua::quant
