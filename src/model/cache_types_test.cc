// What a cache of another type does to a model that has learned something.
//
// The heads of stories260K have 8 elements, fewer than a block. So it is rewritten with heads of
// 32: zeros after the 8, and queries twice as large, since scores are divided by sqrt(32) and no
// longer by sqrt(8). That is the same function, and what is cached are blocks with 8 numbers in
// them.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "gguf/gguf_writer.h"
#include "model/test_models.h"
#include "model/test_perplexity.h"
#include "model/vocab.h"

namespace recua::model {
namespace {

constexpr std::size_t kOld = 8;
constexpr std::size_t kNew = 32;

bool ends_with(std::string_view name, std::string_view end) { return name.ends_with(end); }

/// Rows (or columns) of heads of kOld elements as heads of kNew, zeros in between, times scale.
std::vector<float> widened(std::span<const float> from, std::size_t n_rows, std::size_t n_cols,
                           bool rows, float scale) {
  const auto place = [](std::size_t i) { return i / kOld * kNew + i % kOld; };
  const std::size_t out_cols = rows ? n_cols : n_cols / kOld * kNew;
  std::vector<float> out((rows ? n_rows / kOld * kNew : n_rows) * out_cols);
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t c = 0; c < n_cols; ++c) {
      out[(rows ? place(r) : r) * out_cols + (rows ? c : place(c))] = scale * from[r * n_cols + c];
    }
  }
  return out;
}

std::shared_ptr<const EditedModel> stories_with_large_heads() {
  const auto from = open_golden("models/stories260K.gguf");
  gguf::GgufWriter writer;
  for (const auto& entry : from->metadata()) {
    if (entry.key != "llama.rope.dimension_count") writer.add(entry.key, entry.value);
  }
  writer.add("llama.rope.dimension_count", gguf::Value(std::uint32_t{kOld}));
  writer.add("llama.attention.key_length", gguf::Value(std::uint32_t{kNew}));
  writer.add("llama.attention.value_length", gguf::Value(std::uint32_t{kNew}));
  std::vector<std::vector<float>> tensors;
  for (const gguf::TensorInfo& info : from->tensors()) {
    EXPECT_EQ(info.type, quant::DataType::kF32) << info.name;
    std::vector<float> values(info.n_elements);
    std::memcpy(values.data(), info.data.data(), info.n_bytes);
    std::vector<std::uint64_t> shape(info.shape.begin(),
                                     info.shape.begin() + static_cast<std::ptrdiff_t>(info.n_dims));
    const bool rows = ends_with(info.name, "attn_q.weight") ||
                      ends_with(info.name, "attn_k.weight") ||
                      ends_with(info.name, "attn_v.weight");
    if (rows || ends_with(info.name, "attn_output.weight")) {
      const float scale = ends_with(info.name, "attn_q.weight") ? 2.0F : 1.0F;
      values = widened(values, shape[1], shape[0], rows, scale);
      std::uint64_t& side = shape[rows ? 1 : 0];
      side = side / kOld * kNew;
    }
    writer.add_tensor(info.name, quant::DataType::kF32, shape);
    tensors.push_back(std::move(values));
  }
  auto out = std::make_shared<EditedModel>();
  out->bytes = writer.header();
  for (const std::vector<float>& values : tensors) {
    const auto bytes = std::as_bytes(std::span(values));
    out->bytes.insert(out->bytes.end(), bytes.begin(), bytes.end());
    out->bytes.resize(align_up<std::size_t>(out->bytes.size(), gguf::kAlignmentDefault));
  }
  auto file = gguf::GgufFile::parse(out->bytes, "large-heads.gguf");
  EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
  out->file = std::make_shared<const gguf::GgufFile>(std::move(file).value());
  return out;
}

TEST(CacheTypes, ChangeThePerplexityOfStoriesLittle) {
  const auto original = open_golden("models/stories260K.gguf");
  const auto tokenizer = load_tokenizer(*original);
  ASSERT_TRUE(tokenizer.ok());
  const std::vector<TokenId> ids = tokenizer->encode(read_story(), {.add_bos = false});
  const auto model = stories_with_large_heads();
  const auto device = test_device(2);
  const auto of = [&](quant::DataType k_type, quant::DataType v_type) {
    constexpr std::uint32_t kCtx = 512;
    const std::shared_ptr<const gguf::GgufFile> file(model, model->file.get());
    const auto executor =
        LocalExecutor::create(*device, file, {.n_ctx = kCtx, .k_type = k_type, .v_type = v_type});
    EXPECT_TRUE(executor.ok()) << (executor.ok() ? "" : executor.error().message);
    return executor.ok() ? perplexity(**executor, ids, *tokenizer->bos(), kCtx) : NAN;
  };
  using enum quant::DataType;
  const double f16 = of(kF16, kF16);
  RecordProperty("f16", std::to_string(f16));
  EXPECT_NEAR(f16, 3.6747, 0.001 * 3.6747);  // As that of the model it was made from.
  EXPECT_NEAR(of(kF32, kF32), f16, 0.0005 * f16);
  EXPECT_NEAR(of(kQ8_0, kQ8_0), f16, 0.002 * f16);
  EXPECT_NEAR(of(kQ8_0, kQ4_0), f16, 0.05 * f16);
  // Keys of 4 bits cost this model much, and the cache is not to blame: a plain program of the
  // model and of the definition of Q4_0 gives 6.9662 (and 6.585 when only keys have 4 bits). One
  // element of each head is up to ten times as large as the others and takes nearly all of the
  // scale.
  EXPECT_NEAR(of(kQ4_0, kQ4_0), 6.9662, 0.01 * 6.9662);
}

}  // namespace
}  // namespace recua::model
