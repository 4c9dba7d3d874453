// Blocks of a and b are copied into panels first: kM rows (kN columns) side by
// side for each p, so that a tile reads both straight through. A tile of 6 x 16 holds 24 sums; with
// four vectors of b and one or two of a that is 30 of the 32 registers. Panels at the edge are
// filled up with zeros and go through the same tile, so where an output lies in c does not show in
// it.
#include "kernels/gemm.h"

#include "kernels/neon/common.h"

namespace recua::kernels::neon {
namespace {

constexpr std::size_t kM = 6;
constexpr std::size_t kN = 16;
constexpr std::size_t kVectors = kN / 4;

// Rows (columns for b, which is seen transposed) [begin, begin + n) and p in [p0, p0 + k) of a
// matrix whose element (i, p) is at data[i * stride + p], or the other way round: into panels of
// which out[p * kWidth + i] is one, zeros where there is no i.
template <std::size_t kWidth>
void pack(const float* data, std::size_t stride, bool p_is_contiguous, std::size_t begin,
          std::size_t n, std::size_t p0, std::size_t k, float* out) {
  const std::size_t i_step = p_is_contiguous ? stride : 1;
  const std::size_t p_step = p_is_contiguous ? 1 : stride;
  for (std::size_t first = 0; first < n; first += kWidth) {
    const float* const from = data + (begin + first) * i_step + p0 * p_step;
    const std::size_t here = smaller(kWidth, n - first);
    for (std::size_t p = 0; p < k; ++p, out += kWidth) {
      for (std::size_t i = 0; i < here; ++i) out[i] = from[i * i_step + p * p_step];
      for (std::size_t i = here; i < kWidth; ++i) out[i] = 0.0F;
    }
  }
}

struct Sums {
  float32x4_t at[kM][kVectors];
};

RECUA_NEON_INLINE Sums multiply(const float* a, const float* b, std::size_t k) {
  Sums sums;
  RECUA_UNROLL
  for (std::size_t i = 0; i < kM; ++i) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) sums.at[i][v] = vdupq_n_f32(0.0F);
  }
  for (std::size_t p = 0; p < k; ++p, a += kM, b += kN) {
    float32x4_t column[kVectors];
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) column[v] = vld1q_f32(b + 4 * v);
    RECUA_UNROLL
    for (std::size_t i = 0; i < kM; ++i) {
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        sums.at[i][v] = vfmaq_n_f32(sums.at[i][v], column[v], a[i]);
      }
    }
  }
  return sums;
}

// The tile at c, of which rows x columns exist.
void tile(const float* a, const float* b, std::size_t k, bool add, float* c, std::size_t stride,
          std::size_t rows, std::size_t columns) {
  const Sums sums = multiply(a, b, k);
  if (rows == kM && columns == kN) {
    RECUA_UNROLL
    for (std::size_t i = 0; i < kM; ++i) {
      RECUA_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        float* const out = c + i * stride + 4 * v;
        vst1q_f32(out, add ? vaddq_f32(vld1q_f32(out), sums.at[i][v]) : sums.at[i][v]);
      }
    }
    return;
  }
  float copy[kM * kN];
  RECUA_UNROLL
  for (std::size_t i = 0; i < kM; ++i) {
    RECUA_UNROLL
    for (std::size_t v = 0; v < kVectors; ++v) vst1q_f32(copy + i * kN + 4 * v, sums.at[i][v]);
  }
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; ++j) {
      float& out = c[i * stride + j];
      out = add ? out + copy[i * kN + j] : copy[i * kN + j];
    }
  }
}

void clear(const GemmArgs& args) {
  for (std::size_t i = 0; i < args.m; ++i) {
    for (std::size_t j = 0; j < args.n; ++j) args.c[i * args.c_stride + j] = 0.0F;
  }
}

}  // namespace

void gemm(const GemmArgs& args) {
  float* const packed_a = args.scratch;
  float* const packed_b = args.scratch + kGemmBlockM * kGemmBlockK;
  if (args.k == 0 && !args.accumulate) clear(args);
  for (std::size_t j0 = 0; j0 < args.n; j0 += kGemmBlockN) {
    const std::size_t n = smaller(kGemmBlockN, args.n - j0);
    for (std::size_t p0 = 0; p0 < args.k; p0 += kGemmBlockK) {
      const std::size_t k = smaller(kGemmBlockK, args.k - p0);
      const bool add = args.accumulate || p0 > 0;
      pack<kN>(args.b.data, args.b.stride, args.b.transposed, j0, n, p0, k, packed_b);
      for (std::size_t i0 = 0; i0 < args.m; i0 += kGemmBlockM) {
        const std::size_t m = smaller(kGemmBlockM, args.m - i0);
        pack<kM>(args.a.data, args.a.stride, !args.a.transposed, i0, m, p0, k, packed_a);
        for (std::size_t j = 0; j < n; j += kN) {
          for (std::size_t i = 0; i < m; i += kM) {
            tile(packed_a + i * k, packed_b + j * k, k, add,
                 args.c + (i0 + i) * args.c_stride + j0 + j, args.c_stride, smaller(kM, m - i),
                 smaller(kN, n - j));
          }
        }
      }
    }
  }
}

}  // namespace recua::kernels::neon
