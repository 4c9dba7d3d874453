// Rows of keys and values into the cache. A row is first converted as a whole (kernels), then its
// keys are spread over the groups that hold 16 tokens side by side.
#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "compute/cpu/cpu_device_impl.h"
#include "compute/cpu/cpu_kv.h"

namespace recua::compute {
namespace {

// What storing an element costs next to moving so many bytes: keys go one by one to lines of their
// own.
constexpr std::size_t kStoreCost = 16;

void convert(const kernels::KernelTable& table, quant::DataType type, const float* row,
             std::size_t n, std::byte* out) {
  switch (type) {
    case quant::DataType::kF32:
      std::memcpy(out, row, n * sizeof(float));
      return;
    case quant::DataType::kQ8_0:
      return table.cache_q8_0(row, n, out);
    case quant::DataType::kQ4_0:
      return table.cache_q4_0(row, n, out);
    default:
      return table.f32_to_f16(row, n, reinterpret_cast<std::uint16_t*>(out));
  }
}

// n items of kBytes, which lie side by side, to place `lane` of n lines of kKeyGroup items each.
template <std::size_t kBytes>
void spread(const std::byte* from, std::size_t n, std::size_t lane, std::byte* group) {
  for (std::size_t i = 0; i < n; ++i) {
    std::memcpy(group + (i * kKeyGroup + lane) * kBytes, from + i * kBytes, kBytes);
  }
}

// One head's keys of one token, as a row, to place `lane` of a group.
void spread_keys(quant::DataType type, const std::byte* row, std::size_t head_dim, std::size_t lane,
                 std::byte* group) {
  if (type == quant::DataType::kF32) return spread<4>(row, head_dim, lane, group);
  if (type == quant::DataType::kF16) return spread<2>(row, head_dim, lane, group);
  const quant::DataTypeTraits traits = quant::traits(type);
  for (std::size_t b = 0; b < head_dim / traits.block_size; ++b) {
    const std::byte* const block = row + b * traits.block_bytes;
    std::byte* const to = group + b * kKeyGroup * traits.block_bytes;
    spread<2>(block, 1, lane, to);  // The scale.
    spread<1>(block + 2, traits.block_bytes - 2, lane, to + 2 * kKeyGroup);
  }
}

}  // namespace

void CpuDevice::store_kv(const KvLayer& layer, Rows k, Rows v,
                         std::span<const std::uint64_t> slots) {
  check_layer(layer);
  check_rows(k);
  check_rows(v);
  const std::size_t n = layer.n_kv_heads * layer.head_dim;
  RECUA_CHECK(k.n_rows == slots.size() && v.n_rows == slots.size());
  RECUA_CHECK(k.n_cols == n && v.n_cols == n);
  for (const std::uint64_t slot : slots) RECUA_CHECK(slot / layer.page_tokens < layer.n_pages);
  const std::size_t k_row_bytes = quant::row_bytes(layer.k_type, layer.head_dim);
  const std::size_t v_row_bytes = quant::row_bytes(layer.v_type, layer.head_dim);
  const std::size_t row_bytes =
      align_up(layer.n_kv_heads * std::max(k_row_bytes, v_row_bytes), std::size_t{64});
  std::byte* const memory = attention_scratch_.at_least(row_bytes * pool_.n_threads());
  run(slots.size() * n * kStoreCost, [&](std::size_t thread, std::size_t n_threads) {
    std::byte* const row = memory + thread * row_bytes;
    const sys::Partition part = sys::partition(slots.size(), thread, n_threads, kKeyGroup);
    for (std::size_t r = part.begin; r < part.end; ++r) {
      const std::size_t place = slots[r] % layer.page_tokens;
      std::byte* at =
          layer.buffer->host() + layer.offset + slots[r] / layer.page_tokens * layer.page_stride;
      convert(table_, layer.k_type, k.row(r), n, row);
      const std::size_t group = place / kKeyGroup * kKeyGroup * k_row_bytes;
      for (std::size_t head = 0; head < layer.n_kv_heads; ++head) {
        spread_keys(layer.k_type, row + head * k_row_bytes, layer.head_dim, place % kKeyGroup,
                    at + head * layer.k_head_bytes() + group);
      }
      at += layer.n_kv_heads * layer.k_head_bytes() + place * v_row_bytes;
      convert(table_, layer.v_type, v.row(r), n, row);
      for (std::size_t head = 0; head < layer.n_kv_heads; ++head) {
        std::memcpy(at + head * layer.v_head_bytes(), row + head * v_row_bytes, v_row_bytes);
      }
    }
  });
}

}  // namespace recua::compute
