// Runs once per weight, at memory speed or not far from it: plain copies of four bytes, which the
// compiler does as well as anybody; only the scales of Q4_K need bit by bit care.
#include "kernels/packed.h"

#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "quant/blocks.h"

namespace recua::kernels {
namespace {

using quant::DataType;

// Copies unit i of `array` (kUnit bytes each) to or from place `row` of unit i of eight rows.
template <std::size_t kUnit, class Array>
void put_units(const Array& array, std::size_t row, std::byte* piece) {
  static_assert(sizeof(Array) % kUnit == 0);
  const auto* from = reinterpret_cast<const std::byte*>(&array);
  for (std::size_t i = 0; i < sizeof(Array) / kUnit; ++i) {
    std::memcpy(piece + (i * kPackedRows + row) * kUnit, from + i * kUnit, kUnit);
  }
}
template <std::size_t kUnit, class Array>
void get_units(const std::byte* piece, std::size_t row, Array& array) {
  static_assert(sizeof(Array) % kUnit == 0);
  auto* to = reinterpret_cast<std::byte*>(&array);
  for (std::size_t i = 0; i < sizeof(Array) / kUnit; ++i) {
    std::memcpy(to + i * kUnit, piece + (i * kPackedRows + row) * kUnit, kUnit);
  }
}

constexpr std::size_t kPlaneBytes = 48;

// One row's number of a group into six-bit planes, whose bits must have been zero.
void put_six_bits(std::byte* planes, std::size_t g, std::size_t row, unsigned value) {
  planes[8 * (g % 4) + row] |= static_cast<std::byte>((value & 15U) << (g < 4 ? 0U : 4U));
  planes[32 + 8 * (g % 2) + row] |= static_cast<std::byte>((value >> 4U) << (g / 2 * 2));
}
std::uint8_t get_six_bits(const std::byte* planes, std::size_t g, std::size_t row) {
  const auto low = std::to_integer<unsigned>(planes[8 * (g % 4) + row]) >> (g < 4 ? 0U : 4U);
  const auto high = std::to_integer<unsigned>(planes[32 + 8 * (g % 2) + row]) >> (g / 2 * 2);
  return static_cast<std::uint8_t>((low & 15U) | ((high & 3U) << 4U));
}

void put(const quant::BlockQ4_0& block, std::size_t row, std::byte* piece) {
  put_units<2>(block.d, row, piece);
  put_units<4>(block.qs, row, piece + 16);
}
void get(const std::byte* piece, std::size_t row, quant::BlockQ4_0& block) {
  get_units<2>(piece, row, block.d);
  get_units<4>(piece + 16, row, block.qs);
}

void put(const quant::BlockQ8_0& block, std::size_t row, std::byte* piece) {
  put_units<2>(block.d, row, piece);
  put_units<4>(block.q, row, piece + 16);
}
void get(const std::byte* piece, std::size_t row, quant::BlockQ8_0& block) {
  get_units<2>(piece, row, block.d);
  get_units<4>(piece + 16, row, block.q);
}

void put(const quant::BlockQ4_K& block, std::size_t row, std::byte* piece) {
  put_units<2>(block.d, row, piece);
  put_units<2>(block.dmin, row, piece + 16);
  for (std::size_t g = 0; g < 8; ++g) {
    const quant::ScaleMin pair = quant::scale_min_k4(block.scales, g);
    put_six_bits(piece + 32, g, row, pair.scale);
    put_six_bits(piece + 32 + kPlaneBytes, g, row, pair.min);
  }
  put_units<4>(block.qs, row, piece + 128);
}
void get(const std::byte* piece, std::size_t row, quant::BlockQ4_K& block) {
  get_units<2>(piece, row, block.d);
  get_units<2>(piece + 16, row, block.dmin);
  block.scales = {};
  for (std::size_t g = 0; g < 8; ++g) {
    quant::set_scale_min_k4(block.scales, g,
                            {.scale = get_six_bits(piece + 32, g, row),
                             .min = get_six_bits(piece + 32 + kPlaneBytes, g, row)});
  }
  get_units<4>(piece + 128, row, block.qs);
}

// Calls fn(array, i, j): four bytes i of ql or qh are the j-th of a row in the piece.
template <class Block, class Fn>
void for_dwords_q6_k(Block& block, Fn&& fn) {
  for (std::size_t i = 0; i < 16; ++i) {
    const std::size_t half = i / 8;
    fn(block.ql, 16 * half + i % 8, 3 * i);
    fn(block.ql, 16 * half + 8 + i % 8, 3 * i + 1);
    fn(block.qh, i, 3 * i + 2);
  }
}

void put(const quant::BlockQ6_K& block, std::size_t row, std::byte* piece) {
  put_units<2>(block.d, row, piece);
  put_units<1>(block.scales, row, piece + 16);
  for_dwords_q6_k(block, [&](const auto& array, std::size_t i, std::size_t j) {
    std::memcpy(piece + 144 + 32 * j + 4 * row, array.data() + 4 * i, 4);
  });
}
void get(const std::byte* piece, std::size_t row, quant::BlockQ6_K& block) {
  get_units<2>(piece, row, block.d);
  get_units<1>(piece + 16, row, block.scales);
  for_dwords_q6_k(block, [&](auto& array, std::size_t i, std::size_t j) {
    std::memcpy(array.data() + 4 * i, piece + 144 + 32 * j + 4 * row, 4);
  });
}

template <class Block, std::size_t kElements>
void pack(const std::byte* rows, std::size_t n_rows, std::size_t n_in, std::byte* group) {
  const std::size_t n_blocks = n_in / kElements;
  // Piece by piece: eight streams are read, one is written.
  for (std::size_t b = 0; b < n_blocks; ++b) {
    std::byte* const piece = group + b * kPackedRows * sizeof(Block);
    std::memset(piece, 0, kPackedRows * sizeof(Block));
    for (std::size_t row = 0; row < n_rows; ++row) {
      Block block;
      std::memcpy(&block, rows + (row * n_blocks + b) * sizeof(Block), sizeof(Block));
      put(block, row, piece);
    }
  }
}

template <class Block>
void unpack(const std::byte* group, std::size_t row, std::size_t begin, std::size_t n,
            std::byte* out) {
  for (std::size_t b = 0; b < n; ++b) {
    Block block;
    get(group + (begin + b) * kPackedRows * sizeof(Block), row, block);
    std::memcpy(out + b * sizeof(Block), &block, sizeof(Block));
  }
}

}  // namespace

void pack_group(DataType type, const std::byte* rows, std::size_t n_rows, std::size_t n_in,
                std::byte* group) {
  RECUA_CHECK(has_packed_form(type) && n_rows >= 1 && n_rows <= kPackedRows);
  switch (type) {
    case DataType::kQ4_0:
      return pack<quant::BlockQ4_0, quant::kBlock32>(rows, n_rows, n_in, group);
    case DataType::kQ8_0:
      return pack<quant::BlockQ8_0, quant::kBlock32>(rows, n_rows, n_in, group);
    case DataType::kQ4_K:
      return pack<quant::BlockQ4_K, quant::kBlock256>(rows, n_rows, n_in, group);
    default:
      return pack<quant::BlockQ6_K, quant::kBlock256>(rows, n_rows, n_in, group);
  }
}

void unpack_blocks(DataType type, const std::byte* group, std::size_t row, std::size_t begin,
                   std::size_t n, std::byte* out) {
  RECUA_CHECK(has_packed_form(type) && row < kPackedRows);
  switch (type) {
    case DataType::kQ4_0:
      return unpack<quant::BlockQ4_0>(group, row, begin, n, out);
    case DataType::kQ8_0:
      return unpack<quant::BlockQ8_0>(group, row, begin, n, out);
    case DataType::kQ4_K:
      return unpack<quant::BlockQ4_K>(group, row, begin, n, out);
    default:
      return unpack<quant::BlockQ6_K>(group, row, begin, n, out);
  }
}

}  // namespace recua::kernels
