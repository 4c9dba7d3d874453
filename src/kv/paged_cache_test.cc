#include "kv/paged_cache.h"

#include <cstring>
#include <set>

#include <gtest/gtest.h>

#include "compute/cpu/cpu_device.h"

namespace recua::kv {
namespace {

std::unique_ptr<compute::Device> test_device() {
  const compute::CpuDeviceOptions options = {.n_threads = 1};
  return std::move(compute::make_cpu_device(options)).value();
}

constexpr KvShape kShape = {.n_layers = 3,
                            .n_kv_heads = 2,
                            .head_dim = 5,
                            .n_pages = 4,
                            .page_tokens = 3,
                            .k_type = quant::DataType::kF32,
                            .v_type = quant::DataType::kF16};

TEST(PagedCache, LaysPagesOutWithoutOverlap) {
  EXPECT_EQ(kShape.page_bytes(), 192U);  // 3 * 10 * (4 + 2) = 180, up to the next cache line.
  EXPECT_EQ(kShape.bytes(), 3U * 4U * 192U);
  const auto device = test_device();
  const auto cache = PagedCache::create(*device, kShape);
  ASSERT_TRUE(cache.ok());
  std::set<std::size_t> begins;
  for (std::size_t i = 0; i < kShape.n_layers; ++i) {
    const compute::KvLayer layer = cache->layer(i);
    EXPECT_GE(layer.page_stride,
              layer.page_tokens * (layer.k_token_bytes() + layer.v_token_bytes()));
    for (std::size_t page = 0; page < layer.n_pages; ++page) {
      begins.insert(layer.offset + page * layer.page_stride);
    }
    EXPECT_LE(layer.offset + layer.n_pages * layer.page_stride, layer.buffer->bytes());
  }
  EXPECT_EQ(begins.size(), 12U);
  for (const std::size_t begin : begins) EXPECT_EQ(begin % 64, 0U);
}

TEST(PagedCache, CopiesTheFirstTokensInAllLayers) {
  const auto device = test_device();
  auto cache = PagedCache::create(*device, kShape);
  ASSERT_TRUE(cache.ok());
  const auto page_of = [&](std::size_t layer_index, std::size_t page) {
    const compute::KvLayer layer = cache->layer(layer_index);
    return layer.buffer->host() + layer.offset + page * layer.page_stride;
  };
  const std::size_t k_bytes = 10 * 4;
  const std::size_t v_bytes = 10 * 2;
  for (std::size_t i = 0; i < kShape.n_layers; ++i) {
    std::memset(page_of(i, 1), static_cast<int>(i + 1), 180);
  }
  cache->copy_tokens(1, 3, 2);
  for (std::size_t i = 0; i < kShape.n_layers; ++i) {
    const auto value = static_cast<std::byte>(i + 1);
    const std::byte* page = page_of(i, 3);
    for (std::size_t b = 0; b < 180; ++b) {
      const bool is_k = b < 3 * k_bytes;
      const bool copied = is_k ? b < 2 * k_bytes : b - 3 * k_bytes < 2 * v_bytes;
      EXPECT_EQ(page[b], copied ? value : std::byte{0}) << "layer " << i << " byte " << b;
    }
    EXPECT_EQ(page_of(i, 2)[0], std::byte{0});
  }
}

TEST(PagedCache, RefusesImpossibleShapes) {
  const auto device = test_device();
  KvShape shape = kShape;
  shape.k_type = quant::DataType::kQ8_0;
  EXPECT_EQ(PagedCache::create(*device, shape).error().code, ErrorCode::kInvalidArgument);
  shape = kShape;
  shape.n_pages = 0;
  EXPECT_EQ(PagedCache::create(*device, shape).error().code, ErrorCode::kInvalidArgument);
  shape = kShape;
  shape.n_pages = SIZE_MAX / 8;
  EXPECT_EQ(PagedCache::create(*device, shape).error().code, ErrorCode::kInvalidArgument);
  shape.n_pages = std::size_t{1} << 50;
  const auto too_big = PagedCache::create(*device, shape);
  EXPECT_EQ(too_big.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(too_big.error().message.find("KV cache of"), std::string::npos);
}

}  // namespace
}  // namespace recua::kv
