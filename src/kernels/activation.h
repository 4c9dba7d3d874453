#pragma once
/// How a row of activations is handed to the matmul kernels: as f32, or rounded to 8 bits.
///
/// Weights that are themselves quantized meet 8-bit activations, so that products are exact integer
/// sums within a block. A row of n elements x lies as three arrays, one after the other:
///
///   kQ8x32    q: i8 [n]     d: f32 [n / 32]    s: f32 [n / 32]     fours: i16 [n / 16]
///   kQ8x256   q: i8 [n]     d: f32 [n / 256]   sums: i16 [n / 16]  sums32: i16 [n / 32]
///             offsets: i16 [n / 8]
///   kQ16x32   q: i16 [n]    d: f32 [n / 32]
///
/// or as blocks one after the other, each with all that belongs to it, so that a kernel with many
/// tokens in hand keeps one address for each:
///
///   kBlocks32   ActivationBlock32 [n / 32]
///   kBlocks256  ActivationBlock256 [n / 256]
///
/// Per block of 32 or 256 elements: d = max|x| / 127 and q = x / d to the nearest, ties to even, so
/// q is in [-127, 127] (-128 never occurs: the kernels' 16-bit sums rely on it). A block whose
/// max|x| is below kTiny is all zero. s = d * (sum of the block's q), for types with an offset.
/// sums are those of 16 neighbours, in the order in which the kernels need them: within a block of
/// 256, groups 0 2 4 .. 14, then 1 3 5 .. 15 (sum_index()).
/// The numbers are the same to the bit on every instruction set.
///
/// For packed weights (kernels/packed.h): fours are, per block, -4 times the sum of the elements
/// 0 1 4 5 .. 28 29 and -4 times the sum of the others, of which offsets of 8, 12 and 16 add two,
/// three and four to the two 16-bit sums of a row;
/// sums32 are sums of 32 neighbours, in order; offsets are, per 16 neighbours, -32 times the sum of
/// the elements 0 1 4 5 8 9 12 13 and -32 times the sum of the others, which is what Q6_K's offset
/// of 32 adds to the two 16-bit sums of a row. kQ16x32 has the same q and d as kQ8x32, widened, and
/// within each block of 32 the elements 0 2 4 .. 30, then 1 3 5 .. 31.
/// kBlocks32 and kBlocks256 have the same q and d as kQ8x32 and kQ8x256 and are for kernels that
/// multiply unsigned with signed bytes into 32 bits (AVX-512's): their offsets are where such a sum
/// begins when 128 (of Q8_0, and of Q4_0 with its nibbles as the upper half of a byte) or 32 (of
/// Q6_K) was added to each weight to make it unsigned.

#include <cstddef>
#include <cstdint>

#include "quant/data_type.h"

namespace recua::kernels {

enum class ActivationKind { kF32, kQ8x32, kQ8x256, kQ16x32, kBlocks32, kBlocks256 };

struct ActivationBlock32 {
  float d;
  std::int32_t offset;  // -128 times the sum of q.
  std::int8_t q[32];
};
static_assert(sizeof(ActivationBlock32) == 40);

struct ActivationBlock256 {
  float d;
  std::int16_t sums32[8];    // Of 32 neighbours in q.
  std::int32_t offsets[16];  // -32 times the sum of 16 neighbours in q.
  std::int8_t q[256];
};
static_assert(sizeof(ActivationBlock256) == 340);

/// Below this 127 / max|x| may overflow; such values vanish beside anything a model computes.
inline constexpr float kTiny = 1e-35F;

/// What weights of this type are multiplied with, as rows of the file. (What packed ones are
/// multiplied with depends on the instruction set: KernelTable::packed_activation_kind().)
constexpr ActivationKind activation_kind(quant::DataType type) {
  switch (quant::traits(type).block_size) {
    case 1:
      return ActivationKind::kF32;
    case 32:
      return ActivationKind::kQ8x32;
    default:
      return ActivationKind::kQ8x256;
  }
}

/// Bytes of a row of n elements, rounded up to a cache line. n is a multiple of the block.
constexpr std::size_t activation_row_bytes(ActivationKind kind, std::size_t n) {
  std::size_t bytes = 0;
  switch (kind) {
    case ActivationKind::kF32:
      bytes = n * 4;
      break;
    case ActivationKind::kQ8x32:
      bytes = n + n / 32 * 12;
      break;
    case ActivationKind::kQ8x256:
      bytes = n + n / 256 * 4 + n / 16 * 2 + n / 32 * 2 + n / 8 * 2;
      break;
    case ActivationKind::kQ16x32:
      bytes = 2 * n + n / 32 * 4;
      break;
    case ActivationKind::kBlocks32:
      bytes = n / 32 * sizeof(ActivationBlock32);
      break;
    case ActivationKind::kBlocks256:
      bytes = n / 256 * sizeof(ActivationBlock256);
      break;
  }
  return (bytes + 63) / 64 * 64;
}

/// Where in a block's sums the one of group g (elements 16 g .. 16 g + 15) is.
constexpr std::size_t sum_index(std::size_t g) { return g / 2 + g % 2 * 8; }

// The accessors below are forced inline: instruction-set files use them, and a copy compiled there
// must never be the one that the linker keeps for all.
#define RECUA_KERNEL_INLINE [[gnu::always_inline]] inline

RECUA_KERNEL_INLINE const std::int8_t* q8_values(const std::byte* row) {
  return reinterpret_cast<const std::int8_t*>(row);
}
RECUA_KERNEL_INLINE const float* q8_scales(const std::byte* row, std::size_t n) {
  return reinterpret_cast<const float*>(row + n);
}
RECUA_KERNEL_INLINE const float* q8x32_sums(const std::byte* row, std::size_t n) {
  return reinterpret_cast<const float*>(row + n + n / 32 * 4);
}
RECUA_KERNEL_INLINE const std::int16_t* q8x32_fours(const std::byte* row, std::size_t n) {
  return reinterpret_cast<const std::int16_t*>(row + n + n / 32 * 8);
}
RECUA_KERNEL_INLINE const std::int16_t* q8x256_sums(const std::byte* row, std::size_t n) {
  return reinterpret_cast<const std::int16_t*>(row + n + n / 256 * 4);
}
RECUA_KERNEL_INLINE const std::int16_t* q8x256_sums32(const std::byte* row, std::size_t n) {
  return q8x256_sums(row, n) + n / 16;
}
RECUA_KERNEL_INLINE const std::int16_t* q8x256_offsets(const std::byte* row, std::size_t n) {
  return q8x256_sums32(row, n) + n / 32;
}
RECUA_KERNEL_INLINE const std::int16_t* q16_values(const std::byte* row) {
  return reinterpret_cast<const std::int16_t*>(row);
}
RECUA_KERNEL_INLINE const float* q16_scales(const std::byte* row, std::size_t n) {
  return reinterpret_cast<const float*>(row + 2 * n);
}

RECUA_KERNEL_INLINE const ActivationBlock32* activation_blocks32(const std::byte* row) {
  return reinterpret_cast<const ActivationBlock32*>(row);
}
RECUA_KERNEL_INLINE const ActivationBlock256* activation_blocks256(const std::byte* row) {
  return reinterpret_cast<const ActivationBlock256*>(row);
}

using QuantizeFn = void (*)(const float* x, std::size_t n, std::byte* out);

namespace scalar {
/// x: [n], n a multiple of the block; out: activation_row_bytes(), 4-byte aligned.
void quantize_q8x32(const float* x, std::size_t n, std::byte* out);
void quantize_q8x256(const float* x, std::size_t n, std::byte* out);
void quantize_q16x32(const float* x, std::size_t n, std::byte* out);
void quantize_blocks32(const float* x, std::size_t n, std::byte* out);
void quantize_blocks256(const float* x, std::size_t n, std::byte* out);
}  // namespace scalar
namespace avx2 {
void quantize_q8x32(const float* x, std::size_t n, std::byte* out);
void quantize_q8x256(const float* x, std::size_t n, std::byte* out);
void quantize_q16x32(const float* x, std::size_t n, std::byte* out);
}  // namespace avx2
namespace avx512 {
void quantize_blocks32(const float* x, std::size_t n, std::byte* out);
void quantize_blocks256(const float* x, std::size_t n, std::byte* out);
}  // namespace avx512
namespace neon {
void quantize_q8x32(const float* x, std::size_t n, std::byte* out);
void quantize_q8x256(const float* x, std::size_t n, std::byte* out);
}  // namespace neon

}  // namespace recua::kernels
