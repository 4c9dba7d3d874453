#pragma once
/// Keys and values of past tokens, in pages of a fixed number of tokens.
///
/// Layout: one buffer for all layers of a slice; layer after layer, in it page after page, each as
///   compute::KvLayer has it, and up to 63 bytes so that the next page begins on a cache line. A
///   page id means the same page in every layer.
/// Memory: bytes(shape), allocated once by create(), zeroed; nothing is allocated later.
/// Which sequence owns which page is the SequenceTable's business (kv/sequence_table.h).
/// Threads: the one compute thread of the slice.
/// Source: Kwon et al. 2023, "PagedAttention".

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "compute/device.h"
#include "quant/data_type.h"

namespace recua::kv {

struct KvShape {
  std::size_t n_layers = 0;
  std::size_t n_kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t n_pages = 0;
  std::size_t page_tokens = 0;
  quant::DataType k_type = quant::DataType::kF16;  // kF16, kF32, kQ8_0 or kQ4_0
  quant::DataType v_type = quant::DataType::kF16;

  /// Of one page in one layer, its padding included. 0 if that overflows.
  [[nodiscard]] std::size_t page_bytes() const;
  /// Of the whole cache. 0 if that overflows.
  [[nodiscard]] std::size_t bytes() const;
};

class PagedCache {
 public:
  /// kInvalidArgument: a count is 0, a type cannot hold a cache or its blocks do not fit head_dim,
  /// or the size overflows.
  /// kResourceExhausted: no memory for it; says the size and what it is made of.
  static Result<PagedCache> create(compute::Device& device, const KvShape& shape);

  [[nodiscard]] const KvShape& shape() const { return shape_; }
  /// The cache of layer i of the slice, 0 <= i < n_layers.
  [[nodiscard]] compute::KvLayer layer(std::size_t i) const;

  /// Copies at least the first n_tokens of page `from` to page `to`, in all layers. The device must
  /// have finished what it does with both (sync()).
  void copy_tokens(std::uint32_t from, std::uint32_t to, std::size_t n_tokens);

 private:
  PagedCache(const KvShape& shape, std::unique_ptr<compute::Buffer> buffer)
      : shape_(shape), buffer_(std::move(buffer)) {}

  KvShape shape_;
  std::unique_ptr<compute::Buffer> buffer_;
};

}  // namespace recua::kv
