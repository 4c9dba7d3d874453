// Types with blocks of 256: value = d * scale[g] * q - dmin * min[g], g = element / 16. Types with
// a constant offset (value = d * scale[g] * (q - offset)) fit with min = offset * scale, dmin = d.
#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/activation.h"
#include "kernels/matmul.h"
#include "quant/blocks.h"
#include "quant/half.h"

namespace recua::kernels::scalar {
namespace {

struct Unpacked {
  float d = 0.0F;
  float dmin = 0.0F;
  std::array<int, 16> scale{};
  std::array<int, 16> min{};
  std::array<int, 256> q{};
};

// Two bits per element, as in Q2_K (quant/blocks.h).
template <class Qs>
int two_bits(const Qs& qs, std::size_t i) {
  return (qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3;
}

// Four bits per element, as in Q4_K.
template <class Qs>
int nibble(const Qs& qs, std::size_t i) {
  const int byte = qs[32 * (i / 64) + i % 32];
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

template <class Scales>
void put_scales_and_mins(const Scales& scales, Unpacked& out) {
  for (std::size_t g = 0; g < 16; ++g) {
    const quant::ScaleMin pair = quant::scale_min_k4(scales, g / 2);
    out.scale[g] = pair.scale;
    out.min[g] = pair.min;
  }
}

void put_offset(int offset, Unpacked& out) {
  for (std::size_t g = 0; g < 16; ++g) out.min[g] = offset * out.scale[g];
  out.dmin = out.d;
}

void unpack(const quant::BlockQ2_K& block, Unpacked& out) {
  out.dmin = quant::f16_to_f32(block.dmin);
  for (std::size_t g = 0; g < 16; ++g) {
    out.scale[g] = block.scales[g] & 15;
    out.min[g] = block.scales[g] >> 4;
  }
  for (std::size_t i = 0; i < 256; ++i) out.q[i] = two_bits(block.qs, i);
}

void unpack(const quant::BlockQ3_K& block, Unpacked& out) {
  for (std::size_t g = 0; g < 16; ++g) out.scale[g] = quant::scale_q3_k(block.scales, g) - 32;
  for (std::size_t i = 0; i < 256; ++i) {
    out.q[i] = two_bits(block.qs, i) | ((block.hmask[i % 32] >> (i / 32)) & 1) << 2;
  }
  put_offset(4, out);
}

void unpack(const quant::BlockQ4_K& block, Unpacked& out) {
  out.dmin = quant::f16_to_f32(block.dmin);
  put_scales_and_mins(block.scales, out);
  for (std::size_t i = 0; i < 256; ++i) out.q[i] = nibble(block.qs, i);
}

void unpack(const quant::BlockQ5_K& block, Unpacked& out) {
  out.dmin = quant::f16_to_f32(block.dmin);
  put_scales_and_mins(block.scales, out);
  for (std::size_t i = 0; i < 256; ++i) {
    out.q[i] = nibble(block.qs, i) | ((block.qh[i % 32] >> (i / 32)) & 1) << 4;
  }
}

void unpack(const quant::BlockQ6_K& block, Unpacked& out) {
  std::copy(block.scales.begin(), block.scales.end(), out.scale.begin());
  for (std::size_t i = 0; i < 256; ++i) {
    const int byte = block.ql[64 * (i / 128) + i % 64];
    const int low = i % 128 < 64 ? byte & 15 : byte >> 4;
    out.q[i] = low | two_bits(block.qh, i) << 4;
  }
  put_offset(32, out);
}

void unpack(const quant::BlockIQ4_XS& block, Unpacked& out) {
  for (std::size_t g = 0; g < 16; ++g) out.scale[g] = quant::scale_iq4_xs(block, g / 2) - 32;
  for (std::size_t i = 0; i < 256; ++i) {
    const int byte = block.qs[16 * (i / 32) + i % 16];
    out.q[i] = int{quant::kIQ4Values[i % 32 < 16 ? byte & 15 : byte >> 4]};
  }
}

template <quant::DataType kType>
struct BlockOf;
template <>
struct BlockOf<quant::DataType::kIQ4_XS> {
  using Type = quant::BlockIQ4_XS;
};
template <>
struct BlockOf<quant::DataType::kQ2_K> {
  using Type = quant::BlockQ2_K;
};
template <>
struct BlockOf<quant::DataType::kQ3_K> {
  using Type = quant::BlockQ3_K;
};
template <>
struct BlockOf<quant::DataType::kQ4_K> {
  using Type = quant::BlockQ4_K;
};
template <>
struct BlockOf<quant::DataType::kQ5_K> {
  using Type = quant::BlockQ5_K;
};
template <>
struct BlockOf<quant::DataType::kQ6_K> {
  using Type = quant::BlockQ6_K;
};

double dot(const Unpacked& w, const std::byte* x, std::size_t n_in, std::size_t b) {
  const std::int8_t* q = q8_values(x) + 256 * b;
  const std::int16_t* sums = q8x256_sums(x, n_in) + 16 * b;
  int products = 0;  // At most 256 * 63 * 127 * 128 = 2.6e8.
  int mins = 0;
  for (std::size_t g = 0; g < 16; ++g) {
    int group = 0;
    for (std::size_t i = 16 * g; i < 16 * g + 16; ++i) group += w.q[i] * q[i];
    products += w.scale[g] * group;
    mins += w.min[g] * sums[sum_index(g)];
  }
  return (static_cast<double>(w.d) * products - static_cast<double>(w.dmin) * mins) *
         q8_scales(x, n_in)[b];
}

constexpr std::size_t kTokens = 16;  // Share one unpacking.

}  // namespace

template <quant::DataType kType>
void matmul(const MatmulArgs& args) {
  using Block = typename BlockOf<kType>::Type;
  for (std::size_t t0 = 0; t0 < args.n_tokens; t0 += kTokens) {
    const std::size_t n = std::min(kTokens, args.n_tokens - t0);
    for (std::size_t r = 0; r < args.n_rows; ++r) {
      std::array<double, kTokens> sums{};
      for (std::size_t b = 0; b < args.n_in / 256; ++b) {
        Block block;
        std::memcpy(&block, args.w + r * args.w_stride + b * sizeof(Block), sizeof(Block));
        Unpacked w;
        w.d = quant::f16_to_f32(block.d);
        unpack(block, w);
        for (std::size_t t = 0; t < n; ++t) sums[t] += dot(w, args.x[t0 + t], args.n_in, b);
      }
      for (std::size_t t = 0; t < n; ++t) {
        args.out[t0 + t][args.out_offset + r] = static_cast<float>(sums[t]);
      }
    }
  }
}

template void matmul<quant::DataType::kQ2_K>(const MatmulArgs&);
template void matmul<quant::DataType::kQ3_K>(const MatmulArgs&);
template void matmul<quant::DataType::kQ4_K>(const MatmulArgs&);
template void matmul<quant::DataType::kQ5_K>(const MatmulArgs&);
template void matmul<quant::DataType::kQ6_K>(const MatmulArgs&);
template void matmul<quant::DataType::kIQ4_XS>(const MatmulArgs&);

}  // namespace recua::kernels::scalar
