#include "train/row_ops.h"

#include <algorithm>
#include <array>

namespace recua::train {
namespace {

// Kernels with masked tails then see the same tails for any number of threads.
constexpr std::size_t kPiece = 4096;

template <class Fn>
void for_pieces(Team& team, std::size_t n, Fn&& fn) {
  const std::size_t n_pieces = (n + kPiece - 1) / kPiece;
  team.for_parts(n_pieces, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) fn(i, i * kPiece, std::min(kPiece, n - i * kPiece));
  });
}

}  // namespace

void add(Team& team, std::size_t n, const float* a, const float* b, float* out) {
  for_pieces(team, n, [&](std::size_t, std::size_t at, std::size_t size) {
    team.kernels().add(a + at, b + at, size, out + at);
  });
}

void silu_mul(Team& team, std::size_t n, const float* gate, const float* up, float* out) {
  for_pieces(team, n, [&](std::size_t, std::size_t at, std::size_t size) {
    team.kernels().silu_mul(gate + at, up + at, size, out + at);
  });
}

void silu_mul_backward(Team& team, std::size_t n, const float* gate, const float* up,
                       const float* d_out, float* d_gate, float* d_up) {
  for_pieces(team, n, [&](std::size_t, std::size_t at, std::size_t size) {
    team.kernels().silu_mul_backward(gate + at, up + at, d_out + at, size, d_gate + at, d_up + at);
  });
}

double sum_of_squares(Team& team, std::size_t n, const float* x) {
  constexpr std::size_t kParts = 64;  // Whatever the number of threads.
  std::array<double, kParts> sums{};
  team.for_each(kParts, [&](std::size_t i, std::size_t) {
    const sys::Partition part = sys::partition(n, i, kParts);
    for (std::size_t j = part.begin; j < part.end; ++j) {
      sums[i] += static_cast<double>(x[j]) * static_cast<double>(x[j]);
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace recua::train
