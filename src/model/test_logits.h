#pragma once
/// Logits of whole prompts and how far they are from each other. Included by tests only.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "model/share.h"
#include "model/test_models.h"

namespace recua::model {

using Speeds = std::vector<double>;  // Of the ranks, for divide().

inline std::vector<Share> shares_of(const gguf::GgufFile& file, const Speeds& speeds) {
  const auto hp = read_hyperparams(file);
  EXPECT_TRUE(hp.ok());
  auto shares = divide(*hp, speeds);
  EXPECT_TRUE(shares.ok()) << (shares.ok() ? "" : shares.error().message);
  return std::move(shares).value();
}

inline StepBatch prompt_with_logits(TestSequence& sequence, const std::vector<TokenId>& tokens) {
  StepBatch batch;
  for (std::uint32_t row = 0; row < tokens.size(); ++row) {
    batch.outputs.push_back({.row = row, .kind = OutputRequest::Kind::kLogits});
  }
  batch.parts.push_back(sequence.next(tokens));
  return batch;
}

/// One rank's logits after each token.
inline std::vector<std::vector<float>> unsplit_logits(
    const std::shared_ptr<const gguf::GgufFile>& file, const std::vector<TokenId>& tokens) {
  const auto device = test_device();
  auto executor = LocalExecutor::create(*device, file, exact_options(512));
  EXPECT_TRUE(executor.ok());
  TestSequence sequence;
  const auto result = (*executor)->run(prompt_with_logits(sequence, tokens));
  EXPECT_TRUE(result.ok());
  std::vector<std::vector<float>> out;
  for (const StepOutput& output : result->outputs) out.push_back(output.logits);
  return out;
}

/// The largest difference, relative to the largest logit of the row.
inline double relative_difference(const std::vector<float>& got, const std::vector<float>& wanted) {
  double difference = 0.0;
  double largest = 0.0;
  EXPECT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(got[i]) - wanted[i]));
    largest = std::max(largest, std::abs(static_cast<double>(wanted[i])));
  }
  return difference / largest;
}

}  // namespace recua::model
