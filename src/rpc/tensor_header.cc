#include "rpc/tensor_header.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/sha256.h"

namespace recua::rpc {
namespace {

constexpr std::array<char, 4> kMagic{'R', 'C', 'T', 'M'};
constexpr std::array<char, 4> kCreditMagic{'R', 'C', 'C', 'R'};
constexpr std::uint32_t kFlagLast = 1;
constexpr std::uint32_t kFlagStarving = 2;
constexpr std::size_t kStepOffset = 24;  // Then comes the sequence.
constexpr std::size_t kRowsOffset = 40;
constexpr std::size_t kPaddingOffset = 56;

Error bad_header(std::string_view field, std::size_t offset, std::string_view why) {
  return Error{ErrorCode::kProtocol,
               fmt::format("broken tensor message: {} at byte {} {}", field, offset, why)};
}

}  // namespace

std::array<std::byte, kTensorHeaderBytes> encode(const TensorHeader& header) {
  auto out = encode(header, header.sequence, header.starving);
  set_padding(out, header.padding_bytes);
  return out;
}

std::array<std::byte, kTensorHeaderBytes> encode(const TensorHeader& header, std::uint64_t sequence,
                                                 bool starving) {
  // Whole words: who copies bytes that were stored field by field waits until these have left the
  // processor.
  const auto word = [](std::uint32_t low, std::uint32_t high) {
    return low | std::uint64_t{high} << 32U;
  };
  const std::uint32_t kind = static_cast<std::uint32_t>(header.kind);
  const std::uint32_t flags = (header.last ? kFlagLast : 0U) | (starving ? kFlagStarving : 0U);
  return std::bit_cast<std::array<std::byte, kTensorHeaderBytes>>(std::array<std::uint64_t, 8>{
      word(std::bit_cast<std::uint32_t>(kMagic), kind | std::uint32_t{header.data_type} << 16U),
      header.session, word(header.epoch, header.micro_batch), header.step, sequence,
      word(header.n_rows, header.row_bytes), word(header.descriptor_bytes, flags),
      0});  // Padding and the reserved 6 bytes.
}

void set_padding(std::array<std::byte, kTensorHeaderBytes>& encoded, std::uint16_t padding_bytes) {
  std::memcpy(encoded.data() + kPaddingOffset, &padding_bytes, sizeof(padding_bytes));
}

Result<void> check_magic(std::span<const std::byte> bytes) {
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0) return ok();
  return bad_header(
      "magic", 0,
      fmt::format("is {}, must be 5243544d (RCTM)", to_hex(bytes.first(kMagic.size()))));
}

Result<TensorHeader> decode_tensor_header(std::span<const std::byte, kTensorHeaderBytes> bytes) {
  RECUA_RETURN_IF_ERROR(check_magic(bytes));
  ByteReader reader(bytes.subspan<4>());
  TensorHeader out;
  const std::uint16_t kind = *reader.read<std::uint16_t>();
  out.data_type = *reader.read<std::uint16_t>();
  out.session = *reader.read<std::uint64_t>();
  out.epoch = *reader.read<std::uint32_t>();
  out.micro_batch = *reader.read<std::uint32_t>();
  out.step = *reader.read<std::uint64_t>();
  out.sequence = *reader.read<std::uint64_t>();
  out.n_rows = *reader.read<std::uint32_t>();
  out.row_bytes = *reader.read<std::uint32_t>();
  out.descriptor_bytes = *reader.read<std::uint32_t>();
  const std::uint32_t flags = *reader.read<std::uint32_t>();
  out.padding_bytes = *reader.read<std::uint16_t>();
  const std::uint64_t reserved = *reader.read<std::uint16_t>() | *reader.read<std::uint32_t>();
  if (kind < 1 || kind > 5)
    return bad_header("kind", 4, fmt::format("is {}, must be 1 to 5", kind));
  if ((flags & ~(kFlagLast | kFlagStarving)) != 0)
    return bad_header("flags", 52, fmt::format("is {:#x}, must be 0 to 3", flags));
  if (reserved != 0) return bad_header("reserved", 58, "must be 0");
  out.kind = static_cast<MessageKind>(kind);
  out.last = (flags & kFlagLast) != 0;
  out.starving = (flags & kFlagStarving) != 0;
  return out;
}

TensorHeader successor(TensorHeader header) {
  ++header.step;
  ++header.sequence;
  return header;
}

bool is_successor(std::span<const std::byte, kTensorHeaderBytes> before,
                  std::span<const std::byte, kTensorHeaderBytes> head) {
  std::array<std::uint64_t, 2> numbers;  // Step and sequence.
  static_assert(kStepOffset + sizeof(numbers) == kRowsOffset);
  std::memcpy(numbers.data(), before.data() + kStepOffset, sizeof(numbers));
  for (std::uint64_t& number : numbers) ++number;
  return std::memcmp(before.data(), head.data(), kStepOffset) == 0 &&
         std::memcmp(numbers.data(), head.data() + kStepOffset, sizeof(numbers)) == 0 &&
         std::memcmp(before.data() + kRowsOffset, head.data() + kRowsOffset,
                     kTensorHeaderBytes - kRowsOffset) == 0;
}

bool is_credit(std::span<const std::byte> bytes) {
  return bytes.size() >= kCreditMagic.size() &&
         std::memcmp(bytes.data(), kCreditMagic.data(), kCreditMagic.size()) == 0;
}

std::array<std::byte, kCreditBytes> encode_credit(std::uint64_t n_released) {
  return std::bit_cast<std::array<std::byte, kCreditBytes>>(
      std::array<std::uint64_t, 2>{std::bit_cast<std::uint32_t>(kCreditMagic), n_released});
}

Result<std::uint64_t> decode_credit(std::span<const std::byte, kCreditBytes> bytes) {
  if (!is_credit(bytes)) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("broken credit: magic at byte 0 is {}, must be 52434352 (RCCR)",
                             to_hex(bytes.first(kCreditMagic.size())))};
  }
  ByteReader reader(bytes.subspan<4>());
  if (*reader.read<std::uint32_t>() != 0)
    return Error{ErrorCode::kProtocol, "broken credit: reserved at byte 4 must be 0"};
  return *reader.read<std::uint64_t>();
}

}  // namespace recua::rpc
