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
  // Keys of 16 tokens, values of 3: 10 * (16 * 4 + 3 * 2) = 700, up to the next cache line.
  EXPECT_EQ(kShape.page_bytes(), 704U);
  EXPECT_EQ(kShape.bytes(), 3U * 4U * 704U);
  const auto device = test_device();
  const auto cache = PagedCache::create(*device, kShape);
  ASSERT_TRUE(cache.ok());
  std::set<std::size_t> begins;
  for (std::size_t i = 0; i < kShape.n_layers; ++i) {
    const compute::KvLayer layer = cache->layer(i);
    EXPECT_GE(layer.page_stride, layer.page_bytes());
    for (std::size_t page = 0; page < layer.n_pages; ++page) {
      begins.insert(layer.offset + page * layer.page_stride);
    }
    EXPECT_LE(layer.offset + layer.n_pages * layer.page_stride, layer.buffer->bytes());
  }
  EXPECT_EQ(begins.size(), 12U);
  for (const std::size_t begin : begins) EXPECT_EQ(begin % 64, 0U);
}

TEST(PagedCache, CountsWhatQuantizedTokensTake) {
  const KvShape shape = {.n_layers = 1,
                         .n_kv_heads = 2,
                         .head_dim = 64,
                         .n_pages = 4,
                         .page_tokens = 32,
                         .k_type = quant::DataType::kQ8_0,
                         .v_type = quant::DataType::kQ4_0};
  EXPECT_EQ(shape.page_bytes(), 32U * 2U * (2U * 34U + 2U * 18U));
}

TEST(PagedCache, CopiesTokensInAllLayers) {
  const auto device = test_device();
  auto cache = PagedCache::create(*device, kShape);
  ASSERT_TRUE(cache.ok());
  const auto page_of = [&](std::size_t layer_index, std::size_t page) {
    const compute::KvLayer layer = cache->layer(layer_index);
    return layer.buffer->host() + layer.offset + page * layer.page_stride;
  };
  for (std::size_t i = 0; i < kShape.n_layers; ++i) {
    std::memset(page_of(i, 1), static_cast<int>(i + 1), kShape.page_bytes());
  }
  cache->copy_tokens(1, 3, 2);
  for (std::size_t i = 0; i < kShape.n_layers; ++i) {
    for (std::size_t b = 0; b < 700; ++b) {
      EXPECT_EQ(page_of(i, 3)[b], static_cast<std::byte>(i + 1)) << "layer " << i << " byte " << b;
      EXPECT_EQ(page_of(i, 2)[b], std::byte{0}) << "layer " << i << " byte " << b;
    }
  }
}

TEST(PagedCache, RefusesImpossibleShapes) {
  const auto device = test_device();
  KvShape shape = kShape;
  shape.k_type = quant::DataType::kQ4_K;
  EXPECT_EQ(PagedCache::create(*device, shape).error().code, ErrorCode::kInvalidArgument);
  shape.k_type = quant::DataType::kQ8_0;
  const auto small_heads = PagedCache::create(*device, shape);
  EXPECT_EQ(small_heads.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(small_heads.error().message.find("blocks of 32, and the heads of this model have 5"),
            std::string::npos)
      << small_heads.error().message;
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
