#include "kv/paged_cache.h"

#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/check.h"

namespace recua::kv {
namespace {

constexpr std::size_t kCacheLineBytes = 64;

bool is_cache_type(quant::DataType type) {
  return type == quant::DataType::kF16 || type == quant::DataType::kF32;
}

std::size_t product_or_zero(std::initializer_list<std::size_t> factors) {
  std::size_t product = 1;
  for (const std::size_t factor : factors) {
    const std::optional<std::size_t> next = checked_mul(product, factor);
    if (!next) return 0;
    product = *next;
  }
  return product;
}

}  // namespace

std::size_t KvShape::page_bytes() const {
  const std::size_t element_bytes =
      quant::traits(k_type).block_bytes + quant::traits(v_type).block_bytes;
  const std::size_t used = product_or_zero({page_tokens, n_kv_heads, head_dim, element_bytes});
  return used > SIZE_MAX - kCacheLineBytes ? 0 : align_up(used, kCacheLineBytes);
}

std::size_t KvShape::bytes() const { return product_or_zero({n_layers, n_pages, page_bytes()}); }

Result<PagedCache> PagedCache::create(compute::Device& device, const KvShape& shape) {
  if (!is_cache_type(shape.k_type) || !is_cache_type(shape.v_type)) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("the KV cache cannot be kept in {} (keys) and {} (values); expected "
                             "F16 or F32 for each",
                             quant::traits(shape.k_type).name, quant::traits(shape.v_type).name)};
  }
  const std::size_t bytes = shape.bytes();
  if (bytes == 0) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("a KV cache of {} layers, {} pages of {} tokens, {} heads of {} cannot "
                    "be: each must be at least 1 and the whole fit into 64 bits",
                    shape.n_layers, shape.n_pages, shape.page_tokens, shape.n_kv_heads,
                    shape.head_dim)};
  }
  Result<std::unique_ptr<compute::Buffer>> buffer = device.allocate(bytes);
  if (!buffer.ok()) {
    return std::move(buffer).error().within(
        fmt::format("KV cache of {} MiB ({} layers, {} pages of {} tokens; a smaller context needs "
                    "less)",
                    bytes >> 20, shape.n_layers, shape.n_pages, shape.page_tokens));
  }
  return PagedCache(shape, std::move(buffer).value());
}

compute::KvLayer PagedCache::layer(std::size_t i) const {
  RECUA_CHECK(i < shape_.n_layers);
  const std::size_t page_stride = shape_.page_bytes();
  return {.buffer = buffer_.get(),
          .offset = i * shape_.n_pages * page_stride,
          .page_stride = page_stride,
          .n_pages = shape_.n_pages,
          .page_tokens = shape_.page_tokens,
          .n_kv_heads = shape_.n_kv_heads,
          .head_dim = shape_.head_dim,
          .k_type = shape_.k_type,
          .v_type = shape_.v_type};
}

void PagedCache::copy_tokens(std::uint32_t from, std::uint32_t to, std::size_t n_tokens) {
  RECUA_CHECK(from < shape_.n_pages && to < shape_.n_pages && from != to);
  RECUA_CHECK(n_tokens <= shape_.page_tokens);
  // Device has no copy operator yet; one is due with the first device whose memory is not ours.
  RECUA_CHECK(buffer_->host() != nullptr);
  for (std::size_t i = 0; i < shape_.n_layers; ++i) {
    const compute::KvLayer kv = layer(i);
    std::byte* const base = buffer_->host() + kv.offset;
    std::byte* const source = base + from * kv.page_stride;
    std::byte* const target = base + to * kv.page_stride;
    const std::size_t v_begin = kv.page_tokens * kv.k_token_bytes();
    std::memcpy(target, source, n_tokens * kv.k_token_bytes());
    std::memcpy(target + v_begin, source + v_begin, n_tokens * kv.v_token_bytes());
  }
}

}  // namespace recua::kv
