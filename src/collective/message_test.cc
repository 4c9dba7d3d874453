#include "collective/message.h"

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/random.h"

namespace recua::collective {
namespace {

using testing::HasSubstr;

TEST(CallDescriptor, ComesBackAsItWas) {
  Rng rng(1);
  for (int i = 0; i < 200; ++i) {
    CallDescriptor descriptor{.id = {.operation = static_cast<Operation>(1 + rng.below(5)),
                                     .stage = static_cast<Stage>(rng.below(3)),
                                     .root = static_cast<std::uint32_t>(rng.next()),
                                     .n_values = rng.next()},
                              .n_part = rng.next()};
    const auto bytes = encode(descriptor.id, descriptor.n_part);
    EXPECT_FALSE(is_giving_up(bytes));
    const auto out = decode_descriptor(bytes);
    ASSERT_TRUE(out.ok()) << out.error().message;
    EXPECT_EQ(out->call.id, descriptor.id);
    EXPECT_EQ(out->call.n_part, descriptor.n_part);
    EXPECT_FALSE(out->giving_up.has_value());
  }
}

TEST(CallDescriptor, RefusesWhatItCannotBe) {
  const auto good = encode({.operation = Operation::kBroadcast}, 0);
  const auto refusal = [](std::span<const std::byte> bytes) {
    const auto out = decode_descriptor(bytes);
    EXPECT_FALSE(out.ok());
    if (out.ok()) return std::string();
    EXPECT_EQ(out.error().code, ErrorCode::kProtocol);
    return out.error().message;
  };
  auto bytes = good;
  bytes[0] = std::byte{6};
  EXPECT_THAT(refusal(bytes), HasSubstr("operation at byte 0 is 6"));
  bytes = good;
  bytes[2] = std::byte{3};
  EXPECT_THAT(refusal(bytes), HasSubstr("stage at byte 2 is 3"));
  for (const std::size_t n : {0U, 1U, 7U}) {
    EXPECT_THAT(refusal(std::span(good).first(n)), HasSubstr("must be at least 8"));
  }
  for (const std::size_t n : {8U, 23U}) {
    EXPECT_THAT(refusal(std::span(good).first(n)), HasSubstr("must be 24"));
  }
}

TEST(GivingUp, CarriesACodeAndASafeSentence) {
  // As long as a call's descriptor, and longer than allowed.
  for (const std::string& why : {std::string("sixteen letters!"), std::string(2000, 'x'),
                                 std::string("line\nbreak"), std::string()}) {
    const std::string text = encode(GivingUp{.code = ErrorCode::kTimeout, .why = why});
    EXPECT_LE(text.size(), kGivingUpBytesMax);
    EXPECT_TRUE(is_giving_up(as_bytes(text)));
    const auto out = decode_descriptor(as_bytes(text));
    ASSERT_TRUE(out.ok()) << out.error().message;
    ASSERT_TRUE(out->giving_up.has_value());
    EXPECT_EQ(out->giving_up->code, ErrorCode::kTimeout);
    EXPECT_EQ(out->giving_up->why.find('\n'), std::string::npos);
    EXPECT_EQ(out->giving_up->why.substr(0, 4), why.substr(0, 4));
  }
  std::string unknown = encode(GivingUp{.why = "code 77"});
  unknown[4] = 77;
  EXPECT_EQ(decode_descriptor(as_bytes(unknown))->giving_up->code, ErrorCode::kUnavailable);
  const std::string long_one = encode(GivingUp{}) + std::string(kGivingUpTextBytesMax + 1, 'x');
  EXPECT_EQ(decode_descriptor(as_bytes(long_one)).error().code, ErrorCode::kProtocol);
}

}  // namespace
}  // namespace recua::collective
