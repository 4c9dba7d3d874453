#include "model/hyperparams.h"

#include <string>

#include <gtest/gtest.h>

#include "model/test_models.h"

namespace recua::model {
namespace {

Result<HyperParams> written_and_read(const HyperParams& hp) {
  gguf::GgufWriter writer;
  add_hyperparams(hp, writer);
  const std::vector<std::byte> bytes = writer.header();
  auto file = gguf::GgufFile::parse(bytes, "hyperparams.gguf");
  EXPECT_TRUE(file.ok()) << file.error().message;
  return read_hyperparams(*file);
}

TEST(HyperParams, AreReadAsTheyWereWritten) {
  for (const char* const name :
       {"models/stories260K.gguf", "random/rnd-llama-f16-gqa-tied-rope3.gguf",
        "random/rnd-qwen2-f16.gguf", "random/rnd-qwen3-f16.gguf", "random/rnd-mixtral-f16.gguf"}) {
    SCOPED_TRACE(name);
    const auto hp = read_hyperparams(*open_golden(name));
    ASSERT_TRUE(hp.ok()) << hp.error().message;
    const auto again = written_and_read(*hp);
    ASSERT_TRUE(again.ok()) << again.error().message;
    EXPECT_EQ(*again, *hp);
  }
}

TEST(HyperParams, KeepRarerOnesToo) {
  HyperParams hp = read_hyperparams(*open_golden("models/stories260K.gguf")).value();
  hp.sliding_window = 77;
  hp.rms_eps = 3e-6F;
  hp.rope_scaling = {.kind = RopeScaling::Kind::kLinear, .factor = 2.5F};
  EXPECT_EQ(written_and_read(hp).value(), hp);
  hp.rope_scaling = {.kind = RopeScaling::Kind::kYarn,
                     .factor = 4.0F,
                     .original_n_ctx = 1000,
                     .attn_factor = 1.5F,
                     .ext_factor = 0.5F,
                     .beta_fast = 30.0F,
                     .beta_slow = 2.0F};
  EXPECT_EQ(written_and_read(hp).value(), hp);
}

}  // namespace
}  // namespace recua::model
