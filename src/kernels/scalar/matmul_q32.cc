// Types with blocks of 32: value = d * q + m. Each block is unpacked to plain integers first.
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
  float m = 0.0F;
  std::array<int, 32> q{};
};

template <class Qs>
void put_nibbles(const Qs& qs, int offset, Unpacked& out) {
  for (std::size_t i = 0; i < 16; ++i) {
    out.q[i] = (qs[i] & 15) + offset;
    out.q[i + 16] = (qs[i] >> 4) + offset;
  }
}

template <class Qh>
void put_fifth_bits(const Qh& qh, Unpacked& out) {
  for (std::size_t i = 0; i < 32; ++i) out.q[i] += ((qh[i / 8] >> (i % 8)) & 1) << 4;
}

void unpack(const quant::BlockQ8_0& block, Unpacked& out) {
  std::copy(block.q.begin(), block.q.end(), out.q.begin());
}
void unpack(const quant::BlockQ4_0& block, Unpacked& out) { put_nibbles(block.qs, -8, out); }
void unpack(const quant::BlockQ4_1& block, Unpacked& out) {
  put_nibbles(block.qs, 0, out);
  out.m = quant::f16_to_f32(block.m);
}
void unpack(const quant::BlockQ5_0& block, Unpacked& out) {
  put_nibbles(block.qs, -16, out);
  put_fifth_bits(block.qh, out);
}
void unpack(const quant::BlockQ5_1& block, Unpacked& out) {
  put_nibbles(block.qs, 0, out);
  put_fifth_bits(block.qh, out);
  out.m = quant::f16_to_f32(block.m);
}

template <class Qs>
void look_up(const Qs& qs, const std::int8_t* table, Unpacked& out) {
  for (std::size_t i = 0; i < 16; ++i) {
    out.q[i] = int{table[qs[i] & 15]};
    out.q[i + 16] = int{table[qs[i] >> 4]};
  }
}
void unpack(const quant::BlockIQ4_NL& block, Unpacked& out) {
  look_up(block.qs, quant::kIQ4Values, out);
}
void unpack(const quant::BlockMXFP4& block, Unpacked& out) {
  look_up(block.qs, quant::kFp4Values, out);
}

template <class Block>
float scale_of(const Block& block) {
  return quant::f16_to_f32(block.d);
}
float scale_of(const quant::BlockMXFP4& block) { return quant::half_of_e8m0(block.e); }

template <quant::DataType kType>
struct BlockOf;
template <>
struct BlockOf<quant::DataType::kIQ4_NL> {
  using Type = quant::BlockIQ4_NL;
};
template <>
struct BlockOf<quant::DataType::kMXFP4> {
  using Type = quant::BlockMXFP4;
};
template <>
struct BlockOf<quant::DataType::kQ8_0> {
  using Type = quant::BlockQ8_0;
};
template <>
struct BlockOf<quant::DataType::kQ4_0> {
  using Type = quant::BlockQ4_0;
};
template <>
struct BlockOf<quant::DataType::kQ4_1> {
  using Type = quant::BlockQ4_1;
};
template <>
struct BlockOf<quant::DataType::kQ5_0> {
  using Type = quant::BlockQ5_0;
};
template <>
struct BlockOf<quant::DataType::kQ5_1> {
  using Type = quant::BlockQ5_1;
};

constexpr std::size_t kTokens = 16;  // Share one unpacking.

}  // namespace

template <quant::DataType kType>
void matmul(const MatmulArgs& args) {
  using Block = typename BlockOf<kType>::Type;
  for (std::size_t t0 = 0; t0 < args.n_tokens; t0 += kTokens) {
    const std::size_t n = std::min(kTokens, args.n_tokens - t0);
    for (std::size_t r = 0; r < args.n_rows; ++r) {
      std::array<double, kTokens> sums{};
      for (std::size_t b = 0; b < args.n_in / 32; ++b) {
        Block block;
        std::memcpy(&block, args.w + r * args.w_stride + b * sizeof(Block), sizeof(Block));
        Unpacked w;
        w.d = scale_of(block);
        unpack(block, w);
        for (std::size_t t = 0; t < n; ++t) {
          const std::byte* x = args.x[t0 + t];
          const std::int8_t* q = q8_values(x) + 32 * b;
          int dot = 0;
          for (std::size_t i = 0; i < 32; ++i) dot += w.q[i] * q[i];
          sums[t] += static_cast<double>(w.d) * q8_scales(x, args.n_in)[b] * dot +
                     static_cast<double>(w.m) * q8x32_sums(x, args.n_in)[b];
        }
      }
      for (std::size_t t = 0; t < n; ++t) {
        args.out[t0 + t][args.out_offset + r] = static_cast<float>(sums[t]);
      }
    }
  }
}

template void matmul<quant::DataType::kQ8_0>(const MatmulArgs&);
template void matmul<quant::DataType::kQ4_0>(const MatmulArgs&);
template void matmul<quant::DataType::kQ4_1>(const MatmulArgs&);
template void matmul<quant::DataType::kQ5_0>(const MatmulArgs&);
template void matmul<quant::DataType::kQ5_1>(const MatmulArgs&);
template void matmul<quant::DataType::kIQ4_NL>(const MatmulArgs&);
template void matmul<quant::DataType::kMXFP4>(const MatmulArgs&);

}  // namespace recua::kernels::scalar
