// Tensor headers and credits: what decodes must encode to the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "rpc/tensor_header.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace recua::rpc;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  if (bytes.size() >= kTensorHeaderBytes) {
    const auto first = bytes.first<kTensorHeaderBytes>();
    if (const auto header = decode_tensor_header(first); header.ok())
      RECUA_CHECK(std::ranges::equal(encode(*header), first));
  }
  if (bytes.size() >= kCreditBytes) {
    const auto first = bytes.first<kCreditBytes>();
    if (const auto credit = decode_credit(first); credit.ok())
      RECUA_CHECK(std::ranges::equal(encode_credit(*credit), first));
  }
  return 0;
}
