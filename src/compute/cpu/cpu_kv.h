#pragma once
/// Where tokens lie in a page: only cpu_*.cc include this.

#include <algorithm>
#include <cstddef>
#include <span>

#include "base/check.h"
#include "compute/device.h"
#include "kernels/attention.h"

namespace recua::compute {

static_assert(kKeyGroup == kernels::kKeyGroup);

/// The layer's pages lie in its buffer, and its types can be read.
inline void check_layer(const KvLayer& layer) {
  RECUA_CHECK(layer.buffer != nullptr && layer.buffer->host() != nullptr);
  RECUA_CHECK(layer.page_tokens > 0 && layer.n_kv_heads > 0 && layer.head_dim > 0);
  for (const quant::DataType type : {layer.k_type, layer.v_type}) {
    RECUA_CHECK(kernels::is_cache_type(type));
    RECUA_CHECK(layer.head_dim % quant::traits(type).block_size == 0);
  }
  RECUA_CHECK(layer.page_bytes() <= layer.page_stride || layer.n_pages <= 1);
  RECUA_CHECK(layer.n_pages == 0 ||
              layer.offset + (layer.n_pages - 1) * layer.page_stride + layer.page_bytes() <=
                  layer.buffer->bytes());
}

/// One KV head of a layer, and where a position of a sequence lies in it.
struct HeadCache {
  const KvLayer& layer;
  std::span<const std::uint32_t> pages;
  std::size_t kv_head = 0;

  /// The keys, or values, from position `begin` to the end of its page or to `end`.
  [[nodiscard]] kernels::KeyRun keys(std::size_t begin, std::size_t end) const {
    const std::size_t place = begin % layer.page_tokens;
    return {.data = key_group(begin),
            .skip = place % kKeyGroup,
            .n_tokens = std::min(end - begin, layer.page_tokens - place),
            .head_dim = layer.head_dim,
            .type = layer.k_type};
  }
  [[nodiscard]] kernels::ValueRun values(std::size_t begin, std::size_t end) const {
    const std::size_t place = begin % layer.page_tokens;
    return {.data = value_row(begin),
            .n_tokens = std::min(end - begin, layer.page_tokens - place),
            .head_dim = layer.head_dim,
            .type = layer.v_type};
  }
  /// The group that holds this position's keys.
  [[nodiscard]] const std::byte* key_group(std::size_t position) const {
    const std::size_t group = position % layer.page_tokens / kKeyGroup;
    return page(position) + kv_head * layer.k_head_bytes() +
           group * kKeyGroup * quant::row_bytes(layer.k_type, layer.head_dim);
  }
  [[nodiscard]] const std::byte* value_row(std::size_t position) const {
    return page(position) + layer.n_kv_heads * layer.k_head_bytes() +
           kv_head * layer.v_head_bytes() +
           position % layer.page_tokens * quant::row_bytes(layer.v_type, layer.head_dim);
  }

 private:
  [[nodiscard]] const std::byte* page(std::size_t position) const {
    const std::size_t page = pages[position / layer.page_tokens];
    return layer.buffer->host() + layer.offset + page * layer.page_stride;
  }
};

}  // namespace recua::compute
