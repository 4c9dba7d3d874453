#include "cli/memory_estimate.h"

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

MemoryEstimate example() {
  return {.packed = 1000000, .cache = 4096 * 1000, .ctx_token = 1000, .n_ctx = 4096};
}

TEST(MemoryEstimate, FitsIntoExactlyWhatItNeeds) {
  EXPECT_TRUE(check_fits(example(), example().total()).ok());
  EXPECT_FALSE(check_fits(example(), example().total() - 1).ok());
  EXPECT_TRUE(check_fits(example(), 0).ok()) << "unknown";
}

TEST(MemoryEstimate, NamesTheContextThatWouldFit) {
  const auto fits = check_fits(example(), 3000000);
  ASSERT_FALSE(fits.ok());
  EXPECT_EQ(fits.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(fits.error().message.find("-c 1984"), std::string::npos) << fits.error().message;
  EXPECT_NE(fits.error().message.find("2.1 MB more"), std::string::npos) << fits.error().message;
}

TEST(MemoryEstimate, SuggestsNoContextWhenTheWeightsAloneAreTooMuch) {
  const auto fits = check_fits(example(), 900000);
  ASSERT_FALSE(fits.ok());
  EXPECT_EQ(fits.error().message.find("-c "), std::string::npos) << fits.error().message;
  EXPECT_NE(fits.error().message.find("--workers"), std::string::npos) << fits.error().message;
}

}  // namespace
}  // namespace recua::cli
