#pragma once
/// How the rows of attention_scores() and attention_values() are cut into tiles, which AVX2 and
/// AVX-512 have of other sizes. Only files built with -mavx2 -mfma -mf16c include this.
///
/// Tiles, a type of the file itself (so that each compiles a copy of its own), has
///   kRowsMax                     rows of a tile
///   groups_at_once(type, rows)   groups of keys that a tile of so many rows takes
///   score_groups<kType, kRows, kGroups>(q, head_dim, group, offset, scores, scores_stride)
///                                scores with all tokens of so many groups side by side; offset:
///                                from what is read to what is prefetched
///   values_of<kType, kRows>(p, p_stride, values, out)

#include "kernels/attention.h"
#include "kernels/avx2/common.h"

namespace recua::kernels::avx2 {

RECUA_AVX2_INLINE constexpr bool is_float(quant::DataType type) {
  return type == quant::DataType::kF32 || type == quant::DataType::kF16;
}
RECUA_AVX2_INLINE constexpr std::size_t float_bytes(quant::DataType type) {
  return type == quant::DataType::kF32 ? 4 : 2;
}
RECUA_AVX2_INLINE constexpr std::size_t quant_block_bytes(quant::DataType type) {
  return type == quant::DataType::kQ8_0 ? 34 : 18;
}
RECUA_AVX2_INLINE constexpr std::size_t cached_row_bytes(quant::DataType type,
                                                         std::size_t head_dim) {
  return is_float(type) ? head_dim * float_bytes(type) : head_dim / 32 * quant_block_bytes(type);
}

/// 16 quants as bytes; for Q4_0 the nibbles `shift` bits up.
template <quant::DataType kType>
RECUA_AVX2_INLINE __m128i load_quants(const std::byte* at, int shift) {
  const __m128i q = load128(at);
  if constexpr (kType == quant::DataType::kQ8_0) return q;
  const __m128i nibbles = _mm_srl_epi16(q, _mm_cvtsi32_si128(shift));
  return _mm_sub_epi8(_mm_and_si128(nibbles, _mm_set1_epi8(15)), _mm_set1_epi8(8));
}

template <class Tiles>
class AttentionFrame {
 public:
  static void scores(const float* q, std::size_t n_rows, const KeyRun& keys, float* scores,
                     std::size_t scores_stride) {
    by_type(keys.type, [&]<DataType kType>() __attribute__((always_inline)) {
      by_rows(n_rows, [&]<std::size_t kRows>(std::size_t r) __attribute__((always_inline)) {
        scores_of<kType, kRows>(q + r * keys.head_dim, keys, scores + r * scores_stride,
                                scores_stride);
      });
    });
  }

  static void values(const float* p, std::size_t p_stride, std::size_t n_rows,
                     const ValueRun& values, float* out) {
    by_type(values.type, [&]<DataType kType>() __attribute__((always_inline)) {
      by_rows(n_rows, [&]<std::size_t kRows>(std::size_t r) __attribute__((always_inline)) {
        Tiles::template values_of<kType, kRows>(p + r * p_stride, p_stride, values,
                                                out + r * values.head_dim);
      });
    });
  }

 private:
  using DataType = quant::DataType;

  template <DataType kType, std::size_t kRows>
  static void scores_of(const float* q, const KeyRun& keys, float* scores,
                        std::size_t scores_stride) {
    constexpr std::size_t kGroups = Tiles::groups_at_once(kType, kRows);
    const std::size_t head_dim = keys.head_dim;
    const std::size_t stride = kKeyGroup * cached_row_bytes(kType, head_dim);
    const std::ptrdiff_t offset = keys.next == nullptr ? 0 : keys.next - keys.data;
    const std::size_t end = keys.skip + keys.n_tokens;  // Counted from the first group's begin.
    const std::byte* group = keys.data;
    for (std::size_t begin = 0; begin < end;) {
      if (begin >= keys.skip && begin + kGroups * kKeyGroup <= end) {
        Tiles::template score_groups<kType, kRows, kGroups>(
            q, head_dim, group, offset, scores + (begin - keys.skip), scores_stride);
        begin += kGroups * kKeyGroup;
        group += kGroups * stride;
        continue;
      }
      // One group, of which the run may not have all tokens.
      alignas(64) float all[kRows * kKeyGroup];
      Tiles::template score_groups<kType, kRows, 1>(q, head_dim, group, offset, all, kKeyGroup);
      const std::size_t first = begin < keys.skip ? keys.skip - begin : 0;
      const std::size_t last = end - begin < kKeyGroup ? end - begin : kKeyGroup;
      for (std::size_t r = 0; r < kRows; ++r) {
        for (std::size_t i = first; i < last; ++i) {
          scores[r * scores_stride + (begin + i - keys.skip)] = all[r * kKeyGroup + i];
        }
      }
      begin += kKeyGroup;
      group += stride;
    }
  }

  template <class F>
  RECUA_AVX2_INLINE void by_type(DataType type, F&& f) {
    switch (type) {
      case DataType::kF32:
        return f.template operator()<DataType::kF32>();
      case DataType::kQ8_0:
        return f.template operator()<DataType::kQ8_0>();
      case DataType::kQ4_0:
        return f.template operator()<DataType::kQ4_0>();
      default:
        return f.template operator()<DataType::kF16>();
    }
  }

  // How many of n rows to take at once: as even as can be, since a row alone costs as much as
  // three.
  static std::size_t rows_at_once(std::size_t n) {
    const std::size_t n_tiles = (n + Tiles::kRowsMax - 1) / Tiles::kRowsMax;
    return (n + n_tiles - 1) / n_tiles;
  }

  template <class F>
  RECUA_AVX2_INLINE void by_rows(std::size_t n_rows, F&& f) {
    for (std::size_t r = 0; r < n_rows;) {
      const std::size_t n = rows_at_once(n_rows - r);
      tile<Tiles::kRowsMax>(n, r, f);
      r += n;
    }
  }

  template <std::size_t kRows, class F>
  RECUA_AVX2_INLINE void tile(std::size_t n, std::size_t r, F&& f) {
    if (n == kRows) {
      f.template operator()<kRows>(r);
    } else if constexpr (kRows > 1) {
      tile<kRows - 1>(n, r, f);
    }
  }
};

}  // namespace recua::kernels::avx2
