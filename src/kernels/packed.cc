// Runs once per weight and should not take longer than reading it: eight rows are read side by side
// and each piece is written from front to back.
#include "kernels/packed.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "quant/blocks.h"

namespace recua::kernels {
namespace {

using quant::DataType;

// The same block of eight rows.
using Blocks = const std::byte* const (&)[kPackedRows];

// Unit i (kUnit bytes) of the array at `offset` of each block, for i < n_units, row by row.
template <std::size_t kUnit>
void interleave(Blocks blocks, std::size_t offset, std::size_t n_units, std::byte* piece) {
  for (std::size_t i = 0; i < n_units; ++i) {
    for (std::size_t row = 0; row < kPackedRows; ++row) {
      std::memcpy(piece, blocks[row] + offset + i * kUnit, kUnit);
      piece += kUnit;
    }
  }
}
// One row's part of what interleave() wrote.
template <std::size_t kUnit>
void extract(const std::byte* piece, std::size_t row, std::size_t offset, std::size_t n_units,
             std::byte* block) {
  for (std::size_t i = 0; i < n_units; ++i) {
    std::memcpy(block + offset + i * kUnit, piece + (i * kPackedRows + row) * kUnit, kUnit);
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

template <class Block>
struct Piece;

template <>
struct Piece<quant::BlockQ4_0> {
  static void put(Blocks blocks, std::byte* piece) {
    interleave<2>(blocks, offsetof(quant::BlockQ4_0, d), 1, piece);
    interleave<4>(blocks, offsetof(quant::BlockQ4_0, qs), 4, piece + 16);
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    extract<2>(piece, row, offsetof(quant::BlockQ4_0, d), 1, block);
    extract<4>(piece + 16, row, offsetof(quant::BlockQ4_0, qs), 4, block);
  }
};

template <>
struct Piece<quant::BlockQ8_0> {
  static void put(Blocks blocks, std::byte* piece) {
    interleave<2>(blocks, offsetof(quant::BlockQ8_0, d), 1, piece);
    interleave<4>(blocks, offsetof(quant::BlockQ8_0, q), 8, piece + 16);
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    extract<2>(piece, row, offsetof(quant::BlockQ8_0, d), 1, block);
    extract<4>(piece + 16, row, offsetof(quant::BlockQ8_0, q), 8, block);
  }
};

template <>
struct Piece<quant::BlockQ4_K> {
  using Block = quant::BlockQ4_K;
  static void put(Blocks blocks, std::byte* piece) {
    interleave<2>(blocks, offsetof(Block, d), 1, piece);
    interleave<2>(blocks, offsetof(Block, dmin), 1, piece + 16);
    std::memset(piece + 32, 0, 2 * kPlaneBytes);
    for (std::size_t row = 0; row < kPackedRows; ++row) {
      decltype(Block::scales) scales;
      std::memcpy(scales.data(), blocks[row] + offsetof(Block, scales), scales.size());
      for (std::size_t g = 0; g < 8; ++g) {
        const quant::ScaleMin pair = quant::scale_min_k4(scales, g);
        put_six_bits(piece + 32, g, row, pair.scale);
        put_six_bits(piece + 32 + kPlaneBytes, g, row, pair.min);
      }
    }
    interleave<4>(blocks, offsetof(Block, qs), 32, piece + 128);
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    extract<2>(piece, row, offsetof(Block, d), 1, block);
    extract<2>(piece + 16, row, offsetof(Block, dmin), 1, block);
    decltype(Block::scales) scales{};
    for (std::size_t g = 0; g < 8; ++g) {
      quant::set_scale_min_k4(scales, g,
                              {.scale = get_six_bits(piece + 32, g, row),
                               .min = get_six_bits(piece + 32 + kPlaneBytes, g, row)});
    }
    std::memcpy(block + offsetof(Block, scales), scales.data(), scales.size());
    extract<4>(piece + 128, row, offsetof(Block, qs), 32, block);
  }
};

template <>
struct Piece<quant::BlockQ6_K> {
  using Block = quant::BlockQ6_K;
  // Calls fn(offset in the block, offset in the piece) for every unit of four bytes.
  template <class Fn>
  static void for_units(Fn&& fn) {
    for (std::size_t i = 0; i < 16; ++i) {
      const std::size_t low = offsetof(Block, ql) + 4 * (i / 8 * 16 + i % 8);
      fn(low, 144 + 96 * i);
      fn(low + 32, 144 + 96 * i + 32);
      fn(offsetof(Block, qh) + 4 * i, 144 + 96 * i + 64);
    }
  }
  static void put(Blocks blocks, std::byte* piece) {
    interleave<2>(blocks, offsetof(Block, d), 1, piece);
    interleave<1>(blocks, offsetof(Block, scales), 16, piece + 16);
    for_units(
        [&](std::size_t from, std::size_t to) { interleave<4>(blocks, from, 1, piece + to); });
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    extract<2>(piece, row, offsetof(Block, d), 1, block);
    extract<1>(piece + 16, row, offsetof(Block, scales), 16, block);
    for_units(
        [&](std::size_t to, std::size_t from) { extract<4>(piece + from, row, to, 1, block); });
  }
};

template <class Block, std::size_t kElements>
void pack(const std::byte* rows, std::size_t n_rows, std::size_t n_in, std::byte* group) {
  static constexpr Block kZeros{};  // Stands for rows that are missing.
  const std::size_t n_blocks = n_in / kElements;
  for (std::size_t b = 0; b < n_blocks; ++b) {
    const std::byte* blocks[kPackedRows];
    for (std::size_t row = 0; row < kPackedRows; ++row) {
      blocks[row] = row < n_rows ? rows + (row * n_blocks + b) * sizeof(Block)
                                 : reinterpret_cast<const std::byte*>(&kZeros);
    }
    Piece<Block>::put(blocks, group + b * kPackedRows * sizeof(Block));
  }
}

template <class Block>
void unpack(const std::byte* group, std::size_t row, std::size_t begin, std::size_t n,
            std::byte* out) {
  for (std::size_t b = 0; b < n; ++b) {
    Piece<Block>::get(group + (begin + b) * kPackedRows * sizeof(Block), row,
                      out + b * sizeof(Block));
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
