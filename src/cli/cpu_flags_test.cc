#include "cli/cpu_flags.h"

#include <cstdint>
#include <string>

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

CpuFlags flags_of(const char* range, std::uint32_t strict, const char* numa) {
  CpuFlags out;
  out.range = range;
  out.strict = strict;
  out.numa = numa;
  return out;
}

std::string message_of(const CpuFlags& flags) {
  const auto request = flags.request(0);
  return request.ok() ? "" : request.error().message;
}

TEST(CpuFlags, AskForWhatTheySay) {
  const auto request = flags_of("2-5", 1, "distribute").request(3);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->n_threads, 3U);
  ASSERT_TRUE(request->range.has_value());
  EXPECT_EQ(request->range->first, 2U);
  EXPECT_EQ(request->range->last, 5U);
  EXPECT_TRUE(request->strict);
  EXPECT_EQ(request->numa, sys::NumaPolicy::kDistribute);
  EXPECT_EQ(flags_of("4", 0, "").request(0)->range->last, 4U);
  EXPECT_FALSE(CpuFlags{}.any());
  EXPECT_FALSE(CpuFlags{}.request(0)->any());
}

TEST(CpuFlags, ErrorsNameTheFlagAndWhatWouldBeRight) {
  for (const char* range : {"a-b", "1-", "-3", "1-2-3", "1,2", "4294967296-4294967297"}) {
    const std::string message = message_of(flags_of(range, 0, ""));
    EXPECT_NE(message.find("--cpu-range"), std::string::npos) << range;
    EXPECT_NE(message.find(range), std::string::npos) << message;
    EXPECT_NE(message.find("0-3"), std::string::npos) << message;
  }
  EXPECT_NE(message_of(flags_of("", 2, "")).find("--cpu-strict is 2, need 0 or 1"),
            std::string::npos);
  EXPECT_NE(message_of(flags_of("", 0, "mirror")).find("distribute, isolate or numactl"),
            std::string::npos);
}

}  // namespace
}  // namespace recua::cli
