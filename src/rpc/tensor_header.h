#pragma once
/// The 64 bytes in front of every tensor message, and the 16 bytes of a credit.
/// docs/protocol.md, "Tensor messages" and "Credits on TCP".

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "rpc/channel.h"

namespace recua::rpc {

inline constexpr std::size_t kCreditBytes = 16;

std::array<std::byte, kTensorHeaderBytes> encode(const TensorHeader& header);
/// With what the sender's channel sets; no padding.
std::array<std::byte, kTensorHeaderBytes> encode(const TensorHeader& header, std::uint64_t sequence,
                                                 bool starving);
/// Makes an encoded header announce padding.
void set_padding(std::array<std::byte, kTensorHeaderBytes>& encoded, std::uint16_t padding_bytes);
/// Checks the header alone: magic, kind, flags, reserved bytes. kProtocol: names the field, its
/// offset, the value and what would be right.
Result<TensorHeader> decode_tensor_header(std::span<const std::byte, kTensorHeaderBytes> bytes);

/// The same of its first bytes, at least four, as far as they tell: whoever sends something else
/// may never send the rest.
Result<void> check_magic(std::span<const std::byte> bytes);

/// Header, rows and descriptor. Cannot overflow: (2^32 - 1)^2 + 2^32 + 63 < 2^64, by 2^32.
[[nodiscard]] constexpr std::uint64_t message_bytes(const TensorHeader& header) {
  return kTensorHeaderBytes + std::uint64_t{header.n_rows} * header.row_bytes +
         header.descriptor_bytes;
}

/// The same with what is sent behind it on a connection only to make it longer.
[[nodiscard]] constexpr std::uint64_t padded_bytes(const TensorHeader& header) {
  return message_bytes(header) + header.padding_bytes;
}

/// The header of the next message if that says nothing new: sequence and step are one more.
[[nodiscard]] TensorHeader successor(TensorHeader header);
/// Whether `head` is the successor of `before`, both encoded.
[[nodiscard]] bool is_successor(std::span<const std::byte, kTensorHeaderBytes> before,
                                std::span<const std::byte, kTensorHeaderBytes> head);

/// Whether these first four bytes begin a credit.
bool is_credit(std::span<const std::byte> bytes);
/// n_released: slots given back since the channel began.
std::array<std::byte, kCreditBytes> encode_credit(std::uint64_t n_released);
Result<std::uint64_t> decode_credit(std::span<const std::byte, kCreditBytes> bytes);

}  // namespace recua::rpc
