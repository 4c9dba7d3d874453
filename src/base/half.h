#pragma once
/// 16-bit floats as their bit patterns: IEEE 754 binary16 (F16) and bfloat16 (BF16).
///
/// Widening is exact. Narrowing rounds to nearest, ties to even, the way F16C and AVX512-BF16 do:
/// subnormals are kept, what is too large becomes infinity, a NaN stays a NaN and becomes quiet.
/// None of it depends on the processor's flush-to-zero mode, except for f32 subnormals going to
/// F16, which are zero there anyway.

#include <bit>
#include <cstdint>

namespace recua {

/// The largest finite F16.
inline constexpr float kF16Max = 65504.0F;

constexpr float f16_to_f32(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000U) << 16U;
  const std::uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) {  // Infinity, or a NaN with its payload.
    const std::uint32_t quiet = magnitude > 0x7c00U ? 0x00400000U : 0U;
    return std::bit_cast<float>(sign | 0x7f800000U | quiet | (magnitude & 0x3ffU) << 13U);
  }
  if (magnitude < 0x0400U) {  // Subnormal: a multiple of 2^-24, which is a normal f32.
    const float value = static_cast<float>(magnitude) * 0x1.0p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(value));
  }
  return std::bit_cast<float>(sign | ((magnitude << 13U) + ((127U - 15U) << 23U)));
}

constexpr std::uint16_t f32_to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16U) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U | ((magnitude >> 13U) & 0x3ffU);
  } else if (magnitude >= 0x47800000U) {  // 65536 and up; 65520 to 65536 gets there by its carry.
    half = 0x7c00U;
  } else if (magnitude < 0x38800000U) {  // Below 2^-14, the smallest normal F16.
    // Between 0.5 and 1 a float counts in steps of 2^-24, the same as F16 subnormals: let the
    // addition round.
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  } else {
    const std::uint32_t rounded = magnitude + 0x0fffU + ((magnitude >> 13U) & 1U);
    half = (rounded >> 13U) - ((127U - 15U) << 10U);
  }
  return static_cast<std::uint16_t>(sign | half);
}

constexpr float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

constexpr std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<std::uint16_t>((bits >> 16U) | 0x0040U);
  }
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U);
}

}  // namespace recua
