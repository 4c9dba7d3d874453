#include "cluster/step_codec.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::cluster {
namespace {

using model::OutputRequest;
using model::SequenceOp;
using model::StepBatch;
using model::StepResult;

float random_float(Rng& rng) { return static_cast<float>(rng.normal()); }

StepBatch random_batch(Rng& rng) {
  StepBatch batch;
  for (std::uint64_t i = 0; i < rng.below(4); ++i) {
    batch.ops.push_back({.kind = static_cast<SequenceOp::Kind>(1 + rng.below(3)),
                         .seq = static_cast<std::uint32_t>(rng.next()),
                         .source = static_cast<std::uint32_t>(rng.next()),
                         .n_tokens = static_cast<std::uint32_t>(rng.next()),
                         .page = static_cast<std::uint32_t>(rng.next())});
  }
  for (std::uint64_t i = 0; i < rng.below(4); ++i) {
    model::SequencePart part{.seq = static_cast<std::uint32_t>(rng.next()),
                             .position = static_cast<std::uint32_t>(rng.next())};
    for (std::uint64_t t = 0; t < rng.below(9); ++t) {
      part.tokens.push_back(static_cast<std::int32_t>(rng.next()));
      if (rng.below(2) == 0) part.new_pages.push_back(static_cast<std::uint32_t>(rng.next()));
    }
    batch.parts.push_back(std::move(part));
  }
  for (std::uint64_t i = 0; i < rng.below(5); ++i) {
    OutputRequest request{.row = static_cast<std::uint32_t>(rng.next()),
                          .kind = static_cast<OutputRequest::Kind>(1 + rng.below(3)),
                          .target = static_cast<std::int32_t>(rng.next()),
                          .n_top = static_cast<std::uint32_t>(rng.below(20))};
    if (request.kind == OutputRequest::Kind::kSample) {
      request.sampling.temperature = random_float(rng);
      request.sampling.top_k = static_cast<std::int32_t>(rng.below(100));
      request.sampling.top_p = random_float(rng);
      request.sampling.min_p = random_float(rng);
      request.sampling.typical_p = random_float(rng);
      request.sampling.repeat_penalty = random_float(rng);
      request.sampling.frequency_penalty = random_float(rng);
      request.sampling.presence_penalty = random_float(rng);
      request.sampling.repeat_last_n = static_cast<std::int32_t>(rng.below(100));
      request.sampling.seed = rng.next();
      request.sampling.choice = static_cast<std::uint32_t>(rng.below(9));
      for (std::uint64_t b = 0; b < rng.below(3); ++b) {
        request.sampling.logit_bias.push_back(
            {.id = static_cast<std::int32_t>(rng.below(99)), .bias = random_float(rng)});
      }
    }
    batch.outputs.push_back(std::move(request));
  }
  return batch;
}

TEST(StepCodec, DecodesWhatItEncodes) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const StepBatch batch = random_batch(rng);
    ByteWriter bytes;
    encode_batch(batch, bytes);
    const auto decoded = decode_batch(bytes.bytes());
    ASSERT_TRUE(decoded.ok()) << decoded.error().message;
    EXPECT_EQ(*decoded, batch);
  }
}

TEST(StepCodec, RefusesEveryTruncationAndAnyLeftover) {
  Rng rng(3);
  StepBatch batch;
  while (batch.ops.empty() || batch.parts.empty() || batch.outputs.empty())
    batch = random_batch(rng);
  ByteWriter bytes;
  encode_batch(batch, bytes);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    const auto decoded = decode_batch(bytes.bytes().first(n));
    ASSERT_FALSE(decoded.ok()) << n;
    EXPECT_EQ(decoded.error().code, ErrorCode::kProtocol);
  }
  bytes.write<std::uint8_t>(0);
  EXPECT_FALSE(decode_batch(bytes.bytes()).ok());
}

TEST(StepCodec, BelievesNoCount) {
  for (const std::uint32_t count : {0x7fffffffU, 0x80000000U, 0xffffffffU}) {
    ByteWriter ops;
    ops.write(count);
    EXPECT_FALSE(decode_batch(ops.bytes()).ok());
    ByteWriter tokens;  // No operations, one part that claims that many tokens.
    tokens.write<std::uint32_t>(0);
    tokens.write<std::uint32_t>(1);
    tokens.write<std::uint32_t>(0);
    tokens.write<std::uint32_t>(0);
    tokens.write(count);
    tokens.write(count);
    EXPECT_FALSE(decode_batch(tokens.bytes()).ok());
  }
}

TEST(StepCodec, SurvivesAnyBytes) {
  for (std::uint64_t seed = 0; seed < 5000; ++seed) {
    Rng rng(seed);
    std::vector<std::byte> bytes(rng.below(200));
    for (std::byte& b : bytes) b = static_cast<std::byte>(rng.below(4) == 0 ? rng.next() & 255 : 0);
    (void)decode_batch(bytes);
    (void)decode_result(bytes, {}, 10);
    (void)decode_failure(bytes);
  }
}

TEST(StepCodec, CarriesResultsWithLogitsBesideThem) {
  StepResult result;
  result.outputs.push_back({.row = 3, .id = 7, .logprob = -0.5F, .top = {{7, -0.5F}, {2, -1.0F}}});
  result.outputs.push_back({.row = 5, .id = 0, .logprob = 0, .top = {}, .logits = {1, 2, 3}});
  ByteWriter bytes;
  encode_result(result, bytes);
  const std::vector<float> logits = {1, 2, 3};
  const auto decoded = decode_result(bytes.bytes(), std::as_bytes(std::span(logits)), 3);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  ASSERT_EQ(decoded->outputs.size(), 2u);
  EXPECT_EQ(decoded->outputs[0].top[1].id, 2);
  EXPECT_EQ(decoded->outputs[1].logits, logits);
  EXPECT_FALSE(decode_result(bytes.bytes(), {}, 3).ok());
  EXPECT_FALSE(decode_result(bytes.bytes(), std::as_bytes(std::span(logits)), 2).ok());
}

TEST(StepCodec, CarriesFailures) {
  ByteWriter bytes;
  encode_failure({ErrorCode::kInvalidArgument, "token 999 is out of range"}, bytes);
  const Error error = decode_failure(bytes.bytes());
  EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(error.message, "token 999 is out of range");
  EXPECT_EQ(decode_failure({}).code, ErrorCode::kProtocol);
}

}  // namespace
}  // namespace recua::cluster
