#pragma once
/// Packed weights: rows of a matrix in groups of eight, interleaved so that one vector of 32 bytes
/// holds four neighbouring elements of each of the eight rows. Of floats a group is 32 rows, since
/// as many sums are under way at once: so they are read from memory's front to its back.
///
/// A kernel then broadcasts four activations (of floats one) to all rows, a sum never crosses
/// lanes, and the result is neighbouring outputs (docs/decisions/0008-repacked-weights.md). A group
/// is a run of n_in / block pieces, one after the other, each as long as the blocks that it comes
/// from: packing moves bytes and bits but loses and adds nothing. In the pieces below, "dwords of"
/// an array of a block means: the first four bytes of rows 0 .. 7, then the second four of rows 0
/// .. 7, and so on. "u8 [8]" is one byte per row.
///
///   F32, F16, BF16: 128 or 64 bytes, one element of rows 0 .. 31
///   Q4_0   144  bytes 0..15 d: f16 [8];  16..143 dwords of qs;  IQ4_NL alike
///   Q4_1   160  bytes 0..15 d: f16 [8];  16..31 m: f16 [8];  32..159 dwords of qs
///   Q5_0   176  bytes 0..15 d: f16 [8];  16..47 fifth bits;  48..175 dwords of qs
///   Q5_1   192  bytes 0..15 d: f16 [8];  16..31 m: f16 [8];  32..63 fifth bits;
///               64..191 dwords of qs
///   MXFP4  136  bytes 0..7 e: u8 [8];  8..135 dwords of qs
///   Q8_0   272  bytes 0..15 d: f16 [8];  16..271 dwords of q
///   Q2_K   672  bytes 0..15 d: f16 [8];  16..31 dmin: f16 [8];
///               32..159 scales: u8 [16][8], groups 0 2 .. 14, then 1 3 .. 15;
///               160..671 dwords of qs
///   Q3_K   880  bytes 0..15 d: f16 [8];  16..63 and 64..111 scales of groups 0..7 and 8..15, each
///               as six-bit planes;  112..367 dwords of hmask;  368..879 dwords of qs
///   Q4_K  1152  bytes 0..15 d: f16 [8];  16..31 dmin: f16 [8];
///               32..79 scales, 80..127 mins, each as six-bit planes;  128..1151 dwords of qs
///   Q5_K  1408  bytes 0..127 as Q4_K;  128..383 dwords of qh;  384..1407 dwords of qs
///   Q6_K  1680  bytes 0..15 d: f16 [8];  16..143 scales: i8 [16][8];
///               144..1679 for h < 2 and v < 8 the dwords 16 h + v and 16 h + 8 + v of ql and
///               8 h + v of qh, which make 16 elements: so a product reads from front to back
///   IQ4_XS 1088 bytes 0..15 d: f16 [8];  16..31 scales_high: u16 [8];  32..63 scales: u8 [4][8];
///               64..1087 dwords of qs
///
/// Fifth bits: of the four bytes 4 r .. 4 r + 3 of row r, byte b has in bit j the fifth bit of
/// element 4 j + b. Six-bit planes of the numbers v[g][r] of groups g < 8 and rows r < 8: first 32
/// bytes, of which byte 8 g + r (g < 4) has the low four bits of v[g][r] and, above them, those of
/// v[g + 4][r]; then 16 bytes, of which byte 8 h + r (h < 2) has the upper two bits of v[h][r], v[2
/// + h][r], v[4 + h][r] and v[6 + h][r], from the lowest bits up.
///
/// A matrix whose rows are no multiple of a group's ends in a group filled up with zeros.
/// Activations are those of KernelTable::packed_activation_kind(type).

#include <cstddef>

#include "quant/data_type.h"

namespace recua::kernels {

/// Rows of a group, of quantized types and of floats.
inline constexpr std::size_t kPackedRows = 8;
inline constexpr std::size_t kPackedFloatRows = 32;

constexpr std::size_t packed_rows(quant::DataType type) {
  return quant::traits(type).block_size == 1 ? kPackedFloatRows : kPackedRows;
}

/// Bytes of a group of rows of n_in elements.
constexpr std::size_t packed_group_bytes(quant::DataType type, std::size_t n_in) {
  return packed_rows(type) * quant::row_bytes(type, n_in);
}

/// Groups that hold n_rows rows.
constexpr std::size_t n_packed_groups(quant::DataType type, std::size_t n_rows) {
  return (n_rows + packed_rows(type) - 1) / packed_rows(type);
}

/// Packs the first n_rows (1 .. packed_rows(type)) rows at `rows`, each row_bytes(type, n_in) after
/// the one before, into the group at `group`, which they may not overlap.
void pack_group(quant::DataType type, const std::byte* rows, std::size_t n_rows, std::size_t n_in,
                std::byte* group);

/// One piece: packs a block each of n_rows (1 .. packed_rows(type)) rows, the first at `blocks` and
/// each stride bytes after the one before.
void pack_piece(quant::DataType type, const std::byte* blocks, std::size_t stride,
                std::size_t n_rows, std::byte* piece);

/// The opposite for one row of a group and some of its blocks: writes the blocks [begin, begin +
/// n), as quant/blocks.h has them, to `out`.
void unpack_blocks(quant::DataType type, const std::byte* group, std::size_t row, std::size_t begin,
                   std::size_t n, std::byte* out);

}  // namespace recua::kernels
