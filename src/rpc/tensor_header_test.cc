#include "rpc/tensor_header.h"

#include <cstring>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::rpc {
namespace {

TensorHeader random_header(Rng& rng) {
  TensorHeader out;
  out.kind = static_cast<MessageKind>(1 + rng.below(5));
  out.data_type = static_cast<std::uint16_t>(rng.next());
  out.session = rng.next();
  out.epoch = static_cast<std::uint32_t>(rng.next());
  out.micro_batch = static_cast<std::uint32_t>(rng.next());
  out.step = rng.next();
  out.sequence = rng.next();
  out.n_rows = static_cast<std::uint32_t>(rng.next());
  out.row_bytes = static_cast<std::uint32_t>(rng.next());
  out.descriptor_bytes = static_cast<std::uint32_t>(rng.next());
  out.padding_bytes = static_cast<std::uint16_t>(rng.next());
  out.last = rng.below(2) == 1;
  return out;
}

TEST(TensorHeader, DecodesWhatItEncodes) {
  Rng rng(1);
  for (int i = 0; i < 1000; ++i) {
    const TensorHeader header = random_header(rng);
    const auto bytes = encode(header);
    const Result<TensorHeader> out = decode_tensor_header(bytes);
    ASSERT_TRUE(out.ok()) << out.error().message;
    EXPECT_EQ(*out, header);
  }
}

TEST(TensorHeader, HasOneSuccessor) {
  Rng rng(2);
  for (int i = 0; i < 1000; ++i) {
    const TensorHeader header = random_header(rng);
    const auto bytes = encode(header);
    auto next = encode(successor(header));
    EXPECT_TRUE(is_successor(bytes, next));
    EXPECT_FALSE(is_successor(next, bytes));
    next[rng.below(kTensorHeaderBytes)] ^= std::byte{1};
    EXPECT_FALSE(is_successor(bytes, next));
  }
}

// The example of docs/protocol.md, "Tensor messages".
TEST(TensorHeader, HasTheBytesOfTheProtocolPage) {
  TensorHeader header;
  header.session = 0x1122;
  header.epoch = 1;
  header.step = 5;
  header.n_rows = 1;
  header.row_bytes = 8192;
  header.descriptor_bytes = 40;
  header.last = true;
  constexpr std::array<unsigned char, 64> kExpected{
      0x52, 0x43, 0x54, 0x4d, 1, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0,    0, 0,  //
      1,    0,    0,    0,    0, 0, 0, 0, 5,    0,    0, 0, 0, 0,    0, 0,  //
      0,    0,    0,    0,    0, 0, 0, 0, 1,    0,    0, 0, 0, 0x20, 0, 0,  //
      0x28, 0,    0,    0,    1, 0, 0, 0, 0,    0,    0, 0, 0, 0,    0, 0};
  EXPECT_EQ(std::memcmp(encode(header).data(), kExpected.data(), kExpected.size()), 0);
}

TEST(TensorHeader, NamesTheFieldThatIsWrong) {
  const auto good = encode(TensorHeader{});
  const auto message = [&](std::size_t offset, int value) {
    auto bytes = good;
    bytes[offset] = static_cast<std::byte>(value);
    const Result<TensorHeader> out = decode_tensor_header(bytes);
    EXPECT_FALSE(out.ok());
    EXPECT_EQ(out.error().code, ErrorCode::kProtocol);
    return out.error().message;
  };
  EXPECT_NE(message(0, 0).find("magic at byte 0"), std::string::npos);
  EXPECT_NE(message(4, 6).find("kind at byte 4 is 6"), std::string::npos);
  EXPECT_NE(message(5, 1).find("kind at byte 4"), std::string::npos);
  EXPECT_NE(message(52, 4).find("flags at byte 52"), std::string::npos);
  EXPECT_NE(message(63, 1).find("reserved at byte 58"), std::string::npos);
}

TEST(TensorHeader, TellsItsPadding) {
  auto bytes = encode(TensorHeader{});
  set_padding(bytes, 0x1234);
  const Result<TensorHeader> header = decode_tensor_header(bytes);
  ASSERT_TRUE(header.ok());
  EXPECT_EQ(header->padding_bytes, 0x1234u);
  EXPECT_EQ(encode(*header), bytes);
}

TEST(TensorHeader, NeverOverflowsItsSize) {
  TensorHeader header;
  header.n_rows = header.row_bytes = header.descriptor_bytes = 0xffffffff;
  header.padding_bytes = 0xffff;
  EXPECT_GT(padded_bytes(header), 0xfffffffe00000001ULL);
  EXPECT_GT(message_bytes(header), 0xfffffffe00000001ULL);
}

TEST(Credit, DecodesWhatItEncodesAndNothingElse) {
  for (const std::uint64_t n : {std::uint64_t{0}, std::uint64_t{7}, ~std::uint64_t{0}})
    EXPECT_EQ(*decode_credit(encode_credit(n)), n);
  for (const std::size_t offset : {0u, 3u, 4u, 7u}) {
    auto bytes = encode_credit(7);
    bytes[offset] = std::byte{0x77};
    EXPECT_EQ(decode_credit(bytes).error().code, ErrorCode::kProtocol);
  }
}

}  // namespace
}  // namespace recua::rpc
