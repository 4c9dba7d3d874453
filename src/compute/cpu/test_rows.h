#pragma once
/// For tests of a device: rows and a paged cache of random numbers.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/random.h"
#include "compute/device.h"

namespace recua::compute {

/// Rows with a gap after each, so that a confusion of stride and columns shows.
struct TestRows {
  TestRows(Device& device, std::size_t n_rows, std::size_t n_cols, Rng* rng)
      : buffer(device.allocate((n_rows * (n_cols + 3)) * sizeof(float)).value()),
        view{.buffer = buffer.get(),
             .offset = 0,
             .n_rows = n_rows,
             .n_cols = n_cols,
             .stride = n_cols + 3} {
    for (std::size_t r = 0; rng != nullptr && r < n_rows; ++r) {
      for (std::size_t c = 0; c < n_cols; ++c) view.row(r)[c] = static_cast<float>(rng->normal());
    }
  }
  [[nodiscard]] float& at(std::size_t r, std::size_t c) const { return view.row(r)[c]; }
  [[nodiscard]] std::vector<float> values() const {
    std::vector<float> out;
    for (std::size_t r = 0; r < view.n_rows; ++r) {
      out.insert(out.end(), view.row(r), view.row(r) + view.n_cols);
    }
    return out;
  }

  std::unique_ptr<Buffer> buffer;
  Rows view;
};

/// Pages of one sequence in shuffled order, at an offset and with gaps between them.
struct TestCache {
  TestCache(Device& device, quant::DataType type, std::size_t n_kv_heads, std::size_t head_dim,
            std::size_t page_tokens, std::size_t n_tokens, Rng& rng) {
    layer = {.buffer = nullptr,
             .offset = 128,
             .page_stride = 0,
             .n_pages = (n_tokens + page_tokens - 1) / page_tokens + 2,
             .page_tokens = page_tokens,
             .n_kv_heads = n_kv_heads,
             .head_dim = head_dim,
             .k_type = type,
             .v_type = type};
    layer.page_stride = layer.page_bytes() + 64;
    buffer = device.allocate(layer.offset + layer.n_pages * layer.page_stride).value();
    layer.buffer = buffer.get();
    for (std::uint32_t p = 0; p < layer.n_pages; ++p) pages.push_back(p);
    for (std::size_t i = pages.size(); i > 1; --i) std::swap(pages[i - 1], pages[rng.below(i)]);
  }
  [[nodiscard]] std::vector<std::uint64_t> slots(std::size_t begin, std::size_t n) const {
    std::vector<std::uint64_t> out;
    for (std::size_t i = begin; i < begin + n; ++i) {
      out.push_back(std::uint64_t{pages[i / layer.page_tokens]} * layer.page_tokens +
                    i % layer.page_tokens);
    }
    return out;
  }

  std::unique_ptr<Buffer> buffer;
  KvLayer layer;
  std::vector<std::uint32_t> pages;
};

}  // namespace recua::compute
