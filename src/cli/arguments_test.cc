#include "cli/arguments.h"

#include <array>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

TEST(Arguments, TranslatesShortFlagsOfTwoLetters) {
  const std::array<const char*, 5> given = {"run", "-ctk", "f32", "-ub=64", "-n"};
  const auto out = normalize_arguments(given);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out,
            (std::vector<std::string>{"run", "--cache-type-k", "f32", "--ubatch-size=64", "-n"}));
}

TEST(Arguments, KnowsTheShortFormOfNoRepack) {
  const std::array<const char*, 2> given = {"bench", "-nr"};
  const auto out = normalize_arguments(given);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out, (std::vector<std::string>{"bench", "--no-repack"}));
}

TEST(Arguments, LeavesTheTextOfAPromptAlone) {
  const std::array<const char*, 4> given = {"-p", "-ub", "-p", "-ngl"};
  const auto out = normalize_arguments(given);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out, (std::vector<std::string>{"-p", "-ub", "-p", "-ngl"}));
}

TEST(Arguments, TakesTheTensorSplitOfOthersForSplit) {
  const std::array<const char*, 3> given = {"-ts", "2,1", "--tensor-split=3,1"};
  const auto out = normalize_arguments(given);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out, (std::vector<std::string>{"--split", "2,1", "--split=3,1"}));
}

TEST(Arguments, RefusesGpuLayersWithAdvice) {
  const std::array<const char*, 2> given = {"-ngl", "99"};
  const auto out = normalize_arguments(given);
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(out.error().message.find("--workers"), std::string::npos) << out.error().message;
}

TEST(Nearest, FindsAMisspeltWord) {
  const std::vector<std::string> words = {"run", "worker", "inspect", "perplexity"};
  EXPECT_EQ(nearest("rnu", words), "run");
  EXPECT_EQ(nearest("perplexty", words), "perplexity");
  EXPECT_EQ(nearest("wroker", words), "worker");
}

TEST(Nearest, FindsNothingForAStrangeWord) {
  const std::vector<std::string> words = {"run", "worker"};
  EXPECT_EQ(nearest("quantum", words), "");
}

}  // namespace
}  // namespace recua::cli
