#pragma once
/// How the quantized blocks of eight rows become a piece and come back (kernels/packed.h has the
/// layouts to the byte). Private to packed.cc.
///
/// Piece<Block>::put(blocks, piece) and get(piece, row, block). Most of a piece are fields: arrays
/// of a block whose units are interleaved row by row.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/packed.h"
#include "quant/blocks.h"

namespace recua::kernels {

/// The same block of eight rows.
using Blocks = const std::byte* const (&)[kPackedRows];

/// Unit i (kUnit bytes) of the array at `offset` of each block, for i < n_units, row by row.
template <std::size_t kUnit>
void interleave(Blocks blocks, std::size_t offset, std::size_t n_units, std::byte* piece) {
  for (std::size_t i = 0; i < n_units; ++i) {
    for (std::size_t row = 0; row < kPackedRows; ++row) {
      std::memcpy(piece, blocks[row] + offset + i * kUnit, kUnit);
      piece += kUnit;
    }
  }
}
/// One row's part of what interleave() wrote.
template <std::size_t kUnit>
void extract(const std::byte* piece, std::size_t row, std::size_t offset, std::size_t n_units,
             std::byte* block) {
  for (std::size_t i = 0; i < n_units; ++i) {
    std::memcpy(block + offset + i * kUnit, piece + (i * kPackedRows + row) * kUnit, kUnit);
  }
}

template <std::size_t kUnit>
using Unit = std::integral_constant<std::size_t, kUnit>;

/// Layout::for_fields(fn) calls fn(Unit, offset in the block, units, offset in the piece).
template <class Layout>
struct FieldPiece {
  static void put(Blocks blocks, std::byte* piece) {
    Layout::for_fields([&](auto unit, std::size_t offset, std::size_t n, std::size_t at) {
      interleave<decltype(unit)::value>(blocks, offset, n, piece + at);
    });
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    Layout::for_fields([&](auto unit, std::size_t offset, std::size_t n, std::size_t at) {
      extract<decltype(unit)::value>(piece + at, row, offset, n, block);
    });
  }
};

constexpr std::size_t kPlaneBytes = 48;

/// One row's number of a group into six-bit planes, whose bits must have been zero.
inline void put_six_bits(std::byte* planes, std::size_t g, std::size_t row, unsigned value) {
  planes[8 * (g % 4) + row] |= static_cast<std::byte>((value & 15U) << (g < 4 ? 0U : 4U));
  planes[32 + 8 * (g % 2) + row] |= static_cast<std::byte>((value >> 4U) << (g / 2 * 2));
}
inline std::uint8_t get_six_bits(const std::byte* planes, std::size_t g, std::size_t row) {
  const auto low = std::to_integer<unsigned>(planes[8 * (g % 4) + row]) >> (g < 4 ? 0U : 4U);
  const auto high = std::to_integer<unsigned>(planes[32 + 8 * (g % 2) + row]) >> (g / 2 * 2);
  return static_cast<std::uint8_t>((low & 15U) | ((high & 3U) << 4U));
}

template <class Block>
struct Piece;

template <class Block>
struct NibbleLayout {
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<4>{}, offsetof(Block, qs), 4, 16);
  }
};
template <>
struct Piece<quant::BlockQ4_0> : FieldPiece<NibbleLayout<quant::BlockQ4_0>> {};
template <>
struct Piece<quant::BlockIQ4_NL> : FieldPiece<NibbleLayout<quant::BlockIQ4_NL>> {};

struct LayoutQ4_1 {
  using Block = quant::BlockQ4_1;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<2>{}, offsetof(Block, m), 1, 16);
    fn(Unit<4>{}, offsetof(Block, qs), 4, 32);
  }
};
template <>
struct Piece<quant::BlockQ4_1> : FieldPiece<LayoutQ4_1> {};

struct LayoutMXFP4 {
  using Block = quant::BlockMXFP4;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<1>{}, offsetof(Block, e), 1, 0);
    fn(Unit<4>{}, offsetof(Block, qs), 4, 8);
  }
};
template <>
struct Piece<quant::BlockMXFP4> : FieldPiece<LayoutMXFP4> {};

struct LayoutQ8_0 {
  using Block = quant::BlockQ8_0;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<4>{}, offsetof(Block, q), 8, 16);
  }
};
template <>
struct Piece<quant::BlockQ8_0> : FieldPiece<LayoutQ8_0> {};

/// The fifth bits of 32 elements: of the four bytes of a row, byte b has in bit j that of element
/// 4 j + b, so that one shift brings those of four neighbours into place.
inline void put_fifth_bits(Blocks blocks, std::size_t offset, std::byte* plane) {
  for (std::size_t row = 0; row < kPackedRows; ++row) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, blocks[row] + offset, sizeof(bits));
    for (std::size_t b = 0; b < 4; ++b) {
      unsigned byte = 0;
      for (std::size_t j = 0; j < 8; ++j) byte |= (bits >> (4 * j + b) & 1U) << j;
      plane[4 * row + b] = static_cast<std::byte>(byte);
    }
  }
}
inline void get_fifth_bits(const std::byte* plane, std::size_t row, std::byte* to) {
  std::uint32_t bits = 0;
  for (std::size_t b = 0; b < 4; ++b) {
    const auto byte = std::to_integer<std::uint32_t>(plane[4 * row + b]);
    for (std::size_t j = 0; j < 8; ++j) bits |= (byte >> j & 1U) << (4 * j + b);
  }
  std::memcpy(to, &bits, sizeof(bits));
}

/// kAt: where the plane of fifth bits is, behind the scales and before the nibbles.
template <class Block, std::size_t kAt>
struct FiveBitPiece {
  struct Layout {
    template <class Fn>
    static void for_fields(Fn&& fn) {
      for (std::size_t i = 0; 16 * i < kAt; ++i) fn(Unit<2>{}, 2 * i, 1, 16 * i);
      fn(Unit<4>{}, offsetof(Block, qs), 4, kAt + 32);
    }
  };
  static void put(Blocks blocks, std::byte* piece) {
    FieldPiece<Layout>::put(blocks, piece);
    put_fifth_bits(blocks, offsetof(Block, qh), piece + kAt);
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    FieldPiece<Layout>::get(piece, row, block);
    get_fifth_bits(piece + kAt, row, block + offsetof(Block, qh));
  }
};
template <>
struct Piece<quant::BlockQ5_0> : FiveBitPiece<quant::BlockQ5_0, 16> {};
template <>
struct Piece<quant::BlockQ5_1> : FiveBitPiece<quant::BlockQ5_1, 32> {};

/// Scales and mins of Q4_K and Q5_K become planes; Layout has the rest.
template <class Block, class Layout>
struct ScaleMinPiece {
  static void put(Blocks blocks, std::byte* piece) {
    FieldPiece<Layout>::put(blocks, piece);
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
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    FieldPiece<Layout>::get(piece, row, block);
    decltype(Block::scales) scales{};
    for (std::size_t g = 0; g < 8; ++g) {
      quant::set_scale_min_k4(scales, g,
                              {.scale = get_six_bits(piece + 32, g, row),
                               .min = get_six_bits(piece + 32 + kPlaneBytes, g, row)});
    }
    std::memcpy(block + offsetof(Block, scales), scales.data(), scales.size());
  }
};

struct LayoutQ4_K {
  using Block = quant::BlockQ4_K;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<2>{}, offsetof(Block, dmin), 1, 16);
    fn(Unit<4>{}, offsetof(Block, qs), 32, 128);
  }
};
template <>
struct Piece<quant::BlockQ4_K> : ScaleMinPiece<quant::BlockQ4_K, LayoutQ4_K> {};

struct LayoutQ5_K {
  using Block = quant::BlockQ5_K;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<2>{}, offsetof(Block, dmin), 1, 16);
    fn(Unit<4>{}, offsetof(Block, qh), 8, 128);
    fn(Unit<4>{}, offsetof(Block, qs), 32, 384);
  }
};
template <>
struct Piece<quant::BlockQ5_K> : ScaleMinPiece<quant::BlockQ5_K, LayoutQ5_K> {};

struct LayoutQ2_K {
  using Block = quant::BlockQ2_K;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<2>{}, offsetof(Block, dmin), 1, 16);
    for (std::size_t g = 0; g < 16; ++g) {  // Even groups first.
      fn(Unit<1>{}, offsetof(Block, scales) + g, 1, 32 + 8 * (g / 2 + g % 2 * 8));
    }
    fn(Unit<4>{}, offsetof(Block, qs), 16, 160);
  }
};
template <>
struct Piece<quant::BlockQ2_K> : FieldPiece<LayoutQ2_K> {};

struct LayoutQ3_K {
  using Block = quant::BlockQ3_K;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<4>{}, offsetof(Block, hmask), 8, 112);
    fn(Unit<4>{}, offsetof(Block, qs), 16, 368);
  }
};
template <>
struct Piece<quant::BlockQ3_K> {
  using Block = quant::BlockQ3_K;
  static void put(Blocks blocks, std::byte* piece) {
    FieldPiece<LayoutQ3_K>::put(blocks, piece);
    std::memset(piece + 16, 0, 2 * kPlaneBytes);
    for (std::size_t row = 0; row < kPackedRows; ++row) {
      decltype(Block::scales) scales;
      std::memcpy(scales.data(), blocks[row] + offsetof(Block, scales), scales.size());
      for (std::size_t g = 0; g < 16; ++g) {
        put_six_bits(piece + 16 + g / 8 * kPlaneBytes, g % 8, row,
                     static_cast<unsigned>(quant::scale_q3_k(scales, g)));
      }
    }
  }
  static void get(const std::byte* piece, std::size_t row, std::byte* block) {
    FieldPiece<LayoutQ3_K>::get(piece, row, block);
    decltype(Block::scales) scales{};
    for (std::size_t g = 0; g < 16; ++g) {
      quant::set_scale_q3_k(scales, g, get_six_bits(piece + 16 + g / 8 * kPlaneBytes, g % 8, row));
    }
    std::memcpy(block + offsetof(Block, scales), scales.data(), scales.size());
  }
};

struct LayoutQ6_K {
  using Block = quant::BlockQ6_K;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<1>{}, offsetof(Block, scales), 16, 16);
    for (std::size_t i = 0; i < 16; ++i) {
      const std::size_t low = offsetof(Block, ql) + 4 * (i / 8 * 16 + i % 8);
      fn(Unit<4>{}, low, 1, 144 + 96 * i);
      fn(Unit<4>{}, low + 32, 1, 144 + 96 * i + 32);
      fn(Unit<4>{}, offsetof(Block, qh) + 4 * i, 1, 144 + 96 * i + 64);
    }
  }
};
template <>
struct Piece<quant::BlockQ6_K> : FieldPiece<LayoutQ6_K> {};

struct LayoutIQ4_XS {
  using Block = quant::BlockIQ4_XS;
  template <class Fn>
  static void for_fields(Fn&& fn) {
    fn(Unit<2>{}, offsetof(Block, d), 1, 0);
    fn(Unit<2>{}, offsetof(Block, scales_high), 1, 16);
    fn(Unit<1>{}, offsetof(Block, scales), 4, 32);
    fn(Unit<4>{}, offsetof(Block, qs), 32, 64);
  }
};
template <>
struct Piece<quant::BlockIQ4_XS> : FieldPiece<LayoutIQ4_XS> {};

}  // namespace recua::kernels
