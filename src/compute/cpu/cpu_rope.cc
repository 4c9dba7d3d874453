// Rotary embeddings.
#include <cmath>

#include "compute/cpu/cpu_device_impl.h"

namespace recua::compute {

void CpuDevice::rope_table(std::span<const std::uint32_t> positions, const Buffer& inv_freq,
                           float magnitude, Rows table) {
  check_rows(table);
  RECUA_CHECK(table.n_rows == positions.size() && table.n_cols % 2 == 0);
  RECUA_CHECK(inv_freq.bytes() >= table.n_cols / 2 * sizeof(float));
  // A sine and a cosine in double take about 40 ns, as long as moving some 400 bytes.
  for_rows(positions.size(), table.n_cols * 200, [&](std::size_t r) {
    float* row = table.row(r);
    for (std::size_t j = 0; j < table.n_cols / 2; ++j) {
      const double angle =
          static_cast<double>(positions[r]) * static_cast<double>(floats(inv_freq)[j]);
      row[2 * j] = static_cast<float>(std::cos(angle) * static_cast<double>(magnitude));
      row[2 * j + 1] = static_cast<float>(std::sin(angle) * static_cast<double>(magnitude));
    }
  });
}

void CpuDevice::rope(Rows x, std::size_t n_heads, RopeKind kind, Rows table) {
  check_rows(x);
  check_rows(table);
  RECUA_CHECK(x.n_rows == table.n_rows && n_heads > 0 && x.n_cols % n_heads == 0);
  const std::size_t head_dim = x.n_cols / n_heads;
  RECUA_CHECK(table.n_cols <= head_dim && table.n_cols % 2 == 0);
  const auto rotate =
      kind == RopeKind::kInterleaved ? table_.rope_interleaved : table_.rope_split_half;
  for_rows(x.n_rows, 2 * x.n_cols * sizeof(float), [&](std::size_t r) {
    for (std::size_t h = 0; h < n_heads; ++h) {
      rotate(x.row(r) + h * head_dim, table.row(r), table.n_cols);
    }
  });
}

}  // namespace recua::compute
