#include "kv/paged_cache.h"

#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/check.h"
#include "kernels/attention.h"

namespace recua::kv {
namespace {

constexpr std::size_t kCacheLineBytes = 64;

/// Whether a head's elements can be kept in this type; what is wrong, if not.
Result<void> check_type(const char* what, quant::DataType type, std::size_t head_dim) {
  const auto fail = [&](const std::string& why) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("the KV cache cannot keep {} in {}: {}",
                                                          what, quant::traits(type).name, why)};
  };
  if (!kernels::is_cache_type(type)) return fail("expected F16, F32, Q8_0 or Q4_0");
  const std::size_t block = quant::traits(type).block_size;
  if (head_dim % block != 0) {
    return fail(
        fmt::format("it has blocks of {}, and the heads of this model have {} elements; "
                    "use F16",
                    block, head_dim));
  }
  return ok();
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
  const auto bytes_of = [&](quant::DataType type, std::size_t n_tokens) {
    const quant::DataTypeTraits traits = quant::traits(type);
    return product_or_zero(
        {n_tokens, n_kv_heads, head_dim / traits.block_size, traits.block_bytes});
  };
  if (page_tokens > SIZE_MAX - compute::kKeyGroup) return 0;
  const std::size_t k_bytes = bytes_of(k_type, align_up(page_tokens, compute::kKeyGroup));
  const std::size_t v_bytes = bytes_of(v_type, page_tokens);
  if (k_bytes == 0 || v_bytes == 0 || v_bytes > SIZE_MAX - kCacheLineBytes - k_bytes) return 0;
  return align_up(k_bytes + v_bytes, kCacheLineBytes);
}

std::size_t KvShape::bytes() const { return product_or_zero({n_layers, n_pages, page_bytes()}); }

Result<PagedCache> PagedCache::create(compute::Device& device, const KvShape& shape) {
  RECUA_RETURN_IF_ERROR(check_type("keys", shape.k_type, shape.head_dim));
  RECUA_RETURN_IF_ERROR(check_type("values", shape.v_type, shape.head_dim));
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
    // All of the page: its tokens lie between each other.
    std::memcpy(target, source, kv.page_bytes());
  }
}

}  // namespace recua::kv
