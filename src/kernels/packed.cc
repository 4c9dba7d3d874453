// Runs once per weight and should not take longer than reading it: eight rows are read side by side
// and each piece is written from front to back. Of floats, whose pieces are a line or two, 32 are
// filled row by row.
#include "kernels/packed.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/packed_pieces.h"
#include "quant/blocks.h"

namespace recua::kernels {
namespace {

using quant::DataType;

// Elements that become pieces at a time: their lines stay in the first-level cache meanwhile.
constexpr std::size_t kFloatsAtOnce = 32;

// n blocks of each row, the first row's at `first` and each stride bytes after the one before.
template <class Block>
void pack(const std::byte* first, std::size_t stride, std::size_t n_rows, std::size_t n,
          std::byte* pieces) {
  static constexpr Block kZeros{};  // Stands for rows that are missing.
  for (std::size_t b = 0; b < n; ++b) {
    const std::byte* blocks[kPackedRows];
    for (std::size_t row = 0; row < kPackedRows; ++row) {
      blocks[row] = row < n_rows ? first + row * stride + b * sizeof(Block)
                                 : reinterpret_cast<const std::byte*>(&kZeros);
    }
    Piece<Block>::put(blocks, pieces + b * kPackedRows * sizeof(Block));
  }
}

template <class Element>
  requires std::is_arithmetic_v<Element>
void pack(const std::byte* first, std::size_t stride, std::size_t n_rows, std::size_t n,
          std::byte* pieces) {
  constexpr std::size_t kPieceBytes = kPackedFloatRows * sizeof(Element);
  for (std::size_t begin = 0; begin < n; begin += kFloatsAtOnce) {
    const std::size_t end = std::min(n, begin + kFloatsAtOnce);
    for (std::size_t row = 0; row < kPackedFloatRows; ++row) {
      std::byte* const to = pieces + row * sizeof(Element);
      for (std::size_t i = begin; i < end; ++i) {
        Element value{};
        if (row < n_rows) {
          std::memcpy(&value, first + row * stride + i * sizeof(Element), sizeof(Element));
        }
        std::memcpy(to + i * kPieceBytes, &value, sizeof(Element));
      }
    }
  }
}

template <class Block>
void unpack(const std::byte* group, std::size_t row, std::size_t begin, std::size_t n,
            std::byte* out) {
  for (std::size_t b = 0; b < n; ++b) {
    std::byte* const block = out + b * sizeof(Block);
    if constexpr (std::is_arithmetic_v<Block>) {
      std::memcpy(block, group + ((begin + b) * kPackedFloatRows + row) * sizeof(Block),
                  sizeof(Block));
    } else {
      Piece<Block>::get(group + (begin + b) * kPackedRows * sizeof(Block), row, block);
    }
  }
}

template <class T>
struct BlockType {
  using Type = T;
};

// fn(BlockType<the block of that type>).
template <class Fn>
void with_block(DataType type, Fn&& fn) {
  switch (type) {
    case DataType::kF32:
      return fn(BlockType<float>{});
    case DataType::kF16:
    case DataType::kBF16:
      return fn(BlockType<std::uint16_t>{});
    case DataType::kQ8_0:
      return fn(BlockType<quant::BlockQ8_0>{});
    case DataType::kQ4_0:
      return fn(BlockType<quant::BlockQ4_0>{});
    case DataType::kQ4_1:
      return fn(BlockType<quant::BlockQ4_1>{});
    case DataType::kQ5_0:
      return fn(BlockType<quant::BlockQ5_0>{});
    case DataType::kQ5_1:
      return fn(BlockType<quant::BlockQ5_1>{});
    case DataType::kQ2_K:
      return fn(BlockType<quant::BlockQ2_K>{});
    case DataType::kQ3_K:
      return fn(BlockType<quant::BlockQ3_K>{});
    case DataType::kQ4_K:
      return fn(BlockType<quant::BlockQ4_K>{});
    case DataType::kQ5_K:
      return fn(BlockType<quant::BlockQ5_K>{});
    case DataType::kQ6_K:
      return fn(BlockType<quant::BlockQ6_K>{});
    case DataType::kIQ4_NL:
      return fn(BlockType<quant::BlockIQ4_NL>{});
    case DataType::kIQ4_XS:
      return fn(BlockType<quant::BlockIQ4_XS>{});
    case DataType::kMXFP4:
      return fn(BlockType<quant::BlockMXFP4>{});
  }
  RECUA_CHECK(false && "a DataType outside its enumerators");
}

}  // namespace

void pack_group(DataType type, const std::byte* rows, std::size_t n_rows, std::size_t n_in,
                std::byte* group) {
  RECUA_CHECK(n_rows >= 1 && n_rows <= packed_rows(type));
  with_block(type, [&](auto block) {
    pack<typename decltype(block)::Type>(rows, quant::row_bytes(type, n_in), n_rows,
                                         n_in / quant::traits(type).block_size, group);
  });
}

void pack_piece(DataType type, const std::byte* blocks, std::size_t stride, std::size_t n_rows,
                std::byte* piece) {
  RECUA_CHECK(n_rows >= 1 && n_rows <= packed_rows(type));
  with_block(type, [&](auto block) {
    pack<typename decltype(block)::Type>(blocks, stride, n_rows, 1, piece);
  });
}

void unpack_blocks(DataType type, const std::byte* group, std::size_t row, std::size_t begin,
                   std::size_t n, std::byte* out) {
  RECUA_CHECK(row < packed_rows(type));
  with_block(
      type, [&](auto block) { unpack<typename decltype(block)::Type>(group, row, begin, n, out); });
}

}  // namespace recua::kernels
