// In which order things leave: messages and records in their own, credits as soon as they can.
#include "rpc/stream_writer.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace recua::rpc {
namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// Takes as many bytes as it has room for.
class NarrowConnection final : public net::Connection {
 public:
  [[nodiscard]] const std::string& peer() const override { return peer_; }
  [[nodiscard]] std::string local_address() const override { return {}; }
  net::asio::awaitable<Result<void>> read(std::span<std::byte>) override { co_return ok(); }
  net::asio::awaitable<Result<void>> write(std::span<const std::byte>) override { co_return ok(); }
  Result<std::size_t> try_read(std::span<std::byte>) override { return std::size_t{0}; }
  Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) override {
    const std::size_t before = text.size();
    for (const std::span<const std::byte> part : parts) {
      const std::span<const std::byte> taken = part.first(std::min(part.size(), room));
      room -= taken.size();
      text.append(reinterpret_cast<const char*>(taken.data()), taken.size());
    }
    return text.size() - before;
  }
  void arm_read(net::ReadyCallback) override {}
  void arm_write(net::ReadyCallback) override {}
  Result<std::unique_ptr<net::Connection>> move_to(net::asio::any_io_executor) override {
    return Error{ErrorCode::kUnsupported, "a test's"};
  }
  void close() override {}

  std::size_t room = 0;
  std::string text;

 private:
  std::string peer_ = "peer";
};

class StreamWriterTest : public ::testing::Test {
 protected:
  void push_message(std::uint64_t sequence, std::string_view text) {
    writer_.push_message(
        sequence,
        {.head = std::as_bytes(std::span(text)), .rows = {}, .descriptor = {}, .padding = {}});
  }
  void push_credit(std::string_view text) { writer_.push_credit(bytes_of(text)); }
  std::string write(std::size_t room) {
    connection_.room = room;
    EXPECT_TRUE(writer_.flush(connection_, counters_).ok());
    return std::exchange(connection_.text, {});
  }

  NarrowConnection connection_;
  ChannelCounters counters_;
  StreamWriter writer_;
};

TEST_F(StreamWriterTest, ACreditGoesBeforeMessagesThatHaveNotBegun) {
  push_message(0, "first");
  push_message(1, "second");
  push_credit("<1>");
  EXPECT_EQ(write(4), "<1>f");
  push_credit("<2>");
  EXPECT_EQ(write(100), "irst<2>second");
  EXPECT_EQ(writer_.finished(), (std::vector<std::uint64_t>{0, 1}));
  EXPECT_TRUE(writer_.empty());
}

TEST_F(StreamWriterTest, ALaterCreditStandsForOneThatHasNotBegun) {
  push_message(0, "message");
  EXPECT_EQ(write(2), "me");
  push_credit("<1>");
  push_credit("<2>");
  EXPECT_EQ(write(6), "ssage<");
  push_credit("<3>");  // The second has begun.
  EXPECT_EQ(write(100), "2><3>");
}

TEST_F(StreamWriterTest, RecordsKeepTheirPlaceAmongCreditsAndMessages) {
  push_message(0, "begun");
  EXPECT_EQ(write(1), "b");
  writer_.push_record(bytes_of("{record}"));
  push_message(1, "message");
  push_credit("<1>");
  writer_.push_record(bytes_of("{last}"));
  EXPECT_EQ(write(100), "egun{record}<1>message{last}");
}

}  // namespace
}  // namespace recua::rpc
