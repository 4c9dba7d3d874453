#pragma once
/// Random stored weights for tests and benchmarks: every bit pattern of the integers occurs, while
/// the scales are sane (finite, normal, of both signs where a type allows it).

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/random.h"
#include "quant/blocks.h"
#include "quant/half.h"

namespace recua::kernels {

struct RandomWeights {
  std::vector<std::byte> bytes;  // [n_rows] rows of row_bytes(type, n_in).
  /// No summand of a weight (scale * q, or the offset) is larger. Rounding errors of a product are
  /// relative to this, not to the weight, whose parts may cancel.
  double part_max = 0.0;
};

inline RandomWeights random_weights(quant::DataType type, std::size_t n_rows, std::size_t n_in,
                                    Rng& rng) {
  using quant::DataType;
  RandomWeights out;
  out.bytes.resize(n_rows * quant::row_bytes(type, n_in));
  const auto put16 = [](std::byte* at, std::uint16_t bits) { std::memcpy(at, &bits, 2); };
  if (type == DataType::kF32 || type == DataType::kF16 || type == DataType::kBF16) {
    out.part_max = 6.0;
    for (std::size_t i = 0; i < n_rows * n_in; ++i) {
      const auto value = static_cast<float>(rng.normal());
      if (type == DataType::kF32) {
        std::memcpy(out.bytes.data() + 4 * i, &value, 4);
      } else {
        put16(out.bytes.data() + 2 * i,
              type == DataType::kF16 ? quant::f32_to_f16(value) : quant::f32_to_bf16(value));
      }
    }
    return out;
  }
  for (std::byte& b : out.bytes) b = static_cast<std::byte>(rng.next());
  // A scale in +-[2^-6, 2^-5) and the bytes at which the block has such numbers.
  const auto scale = [&] {
    const double value = (1.0 + rng.unit()) * 0x1.0p-6;
    return quant::f32_to_f16(static_cast<float>(rng.below(2) == 0 ? value : -value));
  };
  std::size_t d = 0;
  std::size_t m = SIZE_MAX;
  double integer_max = 128;
  switch (type) {
    case DataType::kQ4_1:
    case DataType::kQ5_1:
      m = 2;
      break;
    case DataType::kQ2_K:
      d = 80;
      m = 82;
      integer_max = 15 * 3;
      break;
    case DataType::kQ3_K:
      d = 108;
      integer_max = 32 * 7;
      break;
    case DataType::kQ4_K:
    case DataType::kQ5_K:
      m = 2;
      integer_max = 63 * 31;
      break;
    case DataType::kQ6_K:
      d = 208;
      integer_max = 128 * 63;
      break;
    case DataType::kIQ4_XS:
      integer_max = 32 * 127;
      break;
    case DataType::kMXFP4:  // 2^-6 / 2 and 2^-5 / 2, since the integers are doubled.
      for (std::size_t at = 0; at < out.bytes.size(); at += quant::traits(type).block_bytes) {
        out.bytes[at] = static_cast<std::byte>(121 + rng.below(2));
      }
      out.part_max = 12 * 0x1.0p-6;
      return out;
    default:
      break;
  }
  const std::size_t block_bytes = quant::traits(type).block_bytes;
  for (std::size_t at = 0; at < out.bytes.size(); at += block_bytes) {
    put16(out.bytes.data() + at + d, scale());
    if (m != SIZE_MAX) put16(out.bytes.data() + at + m, scale());
  }
  out.part_max = integer_max * 0x1.0p-5;
  return out;
}

inline std::vector<float> random_floats(std::size_t n, Rng& rng) {
  std::vector<float> out(n);
  for (float& value : out) value = static_cast<float>(rng.normal());
  return out;
}

}  // namespace recua::kernels
