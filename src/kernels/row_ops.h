#pragma once
/// The element-wise operators of a transformer, on one row each. No pointer needs alignment beyond
/// its type's.
///
/// n >= 1 unless said otherwise. "Exact" means the same bits on every instruction set.

#include <cstddef>
#include <cstdint>

namespace recua::kernels {

namespace scalar {
/// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps)          Zhang & Sennrich 2019
/// out may be x. Squares are summed in f64, so variants agree within 2^-22 relative.
void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out);

/// out[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x)).   out may be gate or up.
/// Within 2^-20 relative of the true value; exp of an argument above 88 counts as exp(88).
void silu_mul(const float* gate, const float* up, std::size_t n, float* out);

/// out[i] = a[i] + b[i].   out may be a or b. Exact.
void add(const float* a, const float* b, std::size_t n, float* out);

/// out[i] += scale * x[i], rounded once (FMA). Exact.
void scale_add(float scale, const float* x, std::size_t n, float* out);

/// Rotates pairs of the first n_rot (even) elements of x by table [n_rot / 2][cos, sin]:
///   (a, b) <- (a cos - b sin, b cos + a sin)                 Su et al. 2021
/// Interleaved: pairs are (0,1), (2,3)...; split half: (0, n_rot/2), (1, n_rot/2 + 1)... Exact.
void rope_interleaved(float* x, const float* table, std::size_t n_rot);
void rope_split_half(float* x, const float* table, std::size_t n_rot);

/// IEEE binary16, to the nearest, ties to even. Exact.
void f32_to_f16(const float* x, std::size_t n, std::uint16_t* out);
}  // namespace scalar

namespace avx2 {
void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out);
void silu_mul(const float* gate, const float* up, std::size_t n, float* out);
void add(const float* a, const float* b, std::size_t n, float* out);
void scale_add(float scale, const float* x, std::size_t n, float* out);
void rope_interleaved(float* x, const float* table, std::size_t n_rot);
void rope_split_half(float* x, const float* table, std::size_t n_rot);
void f32_to_f16(const float* x, std::size_t n, std::uint16_t* out);
}  // namespace avx2

namespace neon {
void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out);
void silu_mul(const float* gate, const float* up, std::size_t n, float* out);
void add(const float* a, const float* b, std::size_t n, float* out);
void scale_add(float scale, const float* x, std::size_t n, float* out);
void rope_interleaved(float* x, const float* table, std::size_t n_rot);
void rope_split_half(float* x, const float* table, std::size_t n_rot);
void f32_to_f16(const float* x, std::size_t n, std::uint16_t* out);
}  // namespace neon

}  // namespace recua::kernels
