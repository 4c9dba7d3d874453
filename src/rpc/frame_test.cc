#include "rpc/frame.h"

#include <cstring>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "net/deadline.h"
#include "rpc/recua.pb.h"
#include "rpc/test_world.h"

namespace recua::rpc {
namespace {

using std::chrono::seconds;

std::vector<std::byte> ping_frame() {
  wire::Ping ping;
  ping.set_number(7);
  return *encode_frame(FrameKind::kPing, ping, kFrameBytesMax);
}

/// What read_frame makes of these bytes, after which the sender closes.
Result<Frame> read(std::span<const std::byte> bytes, std::uint32_t bytes_max = kFrameBytesMax) {
  TestWorld world;
  const auto reading = world.start(read_frame(*world.server, bytes_max));
  EXPECT_TRUE(world.loop.run(world.client->write(bytes)).ok());
  world.client->close();
  return world.finish(reading);
}

TEST(Frame, HasTheBytesOfTheProtocolPage) {
  constexpr std::array<unsigned char, 18> kExpected{0x52, 0x43, 0x55, 0x41, 2, 0, 0, 0,    7,
                                                    0,    0,    0,    0,    0, 0, 0, 0x08, 0x07};
  const std::vector<std::byte> bytes = ping_frame();
  ASSERT_EQ(bytes.size(), kExpected.size());
  EXPECT_EQ(std::memcmp(bytes.data(), kExpected.data(), kExpected.size()), 0);
}

TEST(Frame, ReadsWhatItWrites) {
  const Result<Frame> frame = read(ping_frame());
  ASSERT_TRUE(frame.ok()) << frame.error().message;
  EXPECT_EQ(frame->kind, FrameKind::kPing);
  wire::Ping ping;
  ASSERT_TRUE(parse_payload(*frame, "b", ping).ok());
  EXPECT_EQ(ping.number(), 7u);
}

TEST(Frame, SaysWhereAStreamEndedThatEndsTooEarly) {
  const std::vector<std::byte> bytes = ping_frame();
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    const Result<Frame> frame = read(std::span(bytes).first(n));
    ASSERT_FALSE(frame.ok()) << n;
    EXPECT_EQ(frame.error().code, ErrorCode::kUnavailable) << frame.error().message;
    EXPECT_EQ(frame.error().message.find("inside a frame") != std::string::npos,
              n >= kFrameHeaderBytes);
  }
}

TEST(Frame, RefusesAnOversizeLengthBeforeReadingOn) {
  for (const std::uint32_t length : {kHandshakeFrameBytesMax + 1, 0x80000000u, 0xffffffffu}) {
    auto header = encode_frame_header({.kind = FrameKind::kHello, .payload_bytes = length});
    const Result<Frame> frame = read(header, kHandshakeFrameBytesMax);
    ASSERT_FALSE(frame.ok());
    EXPECT_EQ(frame.error().code, ErrorCode::kProtocol);
    EXPECT_NE(frame.error().message.find(fmt::format("{}, at most 65536", length)),
              std::string::npos)
        << frame.error().message;
  }
}

TEST(Frame, RefusesReservedBytesAndKindZero) {
  for (std::size_t offset = 8; offset < 16; ++offset) {
    std::vector<std::byte> bytes = ping_frame();
    bytes[offset] = offset == 8 ? std::byte{0} : std::byte{1};
    if (offset == 9) continue;  // Kind 263: unknown, but well-formed.
    EXPECT_EQ(read(bytes).error().code, ErrorCode::kProtocol) << offset;
  }
}

TEST(Frame, SaysWhatForeignBytesLookLike) {
  const auto describe = [](std::string_view text) { return read(as_bytes(text)).error().message; };
  EXPECT_NE(describe("GET / HTTP/1.1\r\nHost: b\r\n").find("an HTTP request"), std::string::npos);
  EXPECT_NE(describe("HTTP/1.1 200 OK\r\n\r\n").find("an HTTP answer"), std::string::npos);
  EXPECT_NE(describe("SSH-2.0-OpenSSH_9.2p1\r\n").find("SSH"), std::string::npos);
  EXPECT_NE(describe("\x16\x03\x01\x02qwertyuiopasdfg").find("TLS"), std::string::npos);
  EXPECT_NE(describe("\x7f\x45LF_whatever_this").find("7f 45 4c 46"), std::string::npos);
}

TEST(Frame, HalfAHeaderAndThenSilenceRunsIntoTheCallersDeadline) {
  TestWorld world;
  const std::vector<std::byte> bytes = ping_frame();
  ASSERT_TRUE(world.loop.run(world.client->write(std::span(bytes).first(9))).ok());
  net::DeadlineGuard guard(world.b, *world.server, seconds(5), "frame");
  const Result<Frame> frame = world.loop.run(read_frame(*world.server, kFrameBytesMax));
  ASSERT_FALSE(frame.ok());
  EXPECT_TRUE(guard.expired());
}

TEST(Frame, NamesTheTypeThatAPayloadIsNot) {
  const Frame frame{.kind = FrameKind::kHello, .payload = {std::byte{0xff}, std::byte{0xff}}};
  wire::Hello hello;
  const Result<void> parsed = parse_payload(frame, "10.0.0.5:7500", hello);
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.error().message, "10.0.0.5:7500: 2 bytes are no recua.wire.Hello");
}

TEST(Frame, CountsEveryPieceOfALargeFrameAsProgress) {
  TestWorld world({.window_bytes = 1 << 20});
  wire::Chunk chunk;
  chunk.set_data(std::string(3'000'000, 'x'));
  const std::vector<std::byte> bytes = *encode_frame(FrameKind::kReply, chunk, kFrameBytesMax);
  int n_pieces = 0;
  const std::function<void()> on_progress = [&] { ++n_pieces; };
  const auto reading = world.start(read_frame(*world.server, kFrameBytesMax, on_progress));
  ASSERT_TRUE(world.loop.run(world.client->write(bytes)).ok());
  ASSERT_TRUE(world.finish(reading).ok());
  EXPECT_GT(n_pieces, 10);
}

}  // namespace
}  // namespace recua::rpc
