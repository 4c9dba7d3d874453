#include <gtest/gtest.h>

#include "net/connection.h"

namespace recua::net {
namespace {

TEST(Endpoint, ParsesWhatPeopleWrite) {
  const auto parse = [](std::string_view text) { return *Endpoint::parse(text, 7500); };
  EXPECT_EQ(parse("box1:80"), (Endpoint{"box1", 80}));
  EXPECT_EQ(parse("box1"), (Endpoint{"box1", 7500}));
  EXPECT_EQ(parse("10.0.0.5:1"), (Endpoint{"10.0.0.5", 1}));
  EXPECT_EQ(parse(":80"), (Endpoint{"", 80}));
  EXPECT_EQ(parse("[fe80::1%eth0]:80"), (Endpoint{"fe80::1%eth0", 80}));
  EXPECT_EQ(parse("[::1]"), (Endpoint{"::1", 7500}));
  EXPECT_EQ(parse("::1"), (Endpoint{"::1", 7500}));
  EXPECT_EQ(parse("box1:65535"), (Endpoint{"box1", 65535}));
}

TEST(Endpoint, RefusesWhatIsNoAddressAndSaysWhatWouldBe) {
  for (const char* text : {"", "box1:", "box1:65536", "box1:-1", "box1:80x", "[::1", "[::1]80",
                           "[box1]:80", "http://box1:80", "box 1:80"}) {
    const Result<Endpoint> out = Endpoint::parse(text, 7500);
    ASSERT_FALSE(out.ok()) << text;
    EXPECT_EQ(out.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(out.error().message.find("host:port"), std::string::npos) << out.error().message;
  }
}

TEST(Endpoint, PrintsWhatItParses) {
  for (const char* text : {"box1:80", "10.0.0.5:7500", "[::1]:7500", ":7500"})
    EXPECT_EQ(Endpoint::parse(text, 1)->to_string(), text);
}

}  // namespace
}  // namespace recua::net
