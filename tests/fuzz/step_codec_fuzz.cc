// The descriptors of tensor messages: a step, a result with or without logits, a failure.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bytes.h"
#include "base/check.h"
#include "cluster/step_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  if (const auto batch = recua::cluster::decode_batch(bytes); batch.ok()) {
    recua::ByteWriter again;  // What was understood is written the same way.
    recua::cluster::encode_batch(*batch, again);
    RECUA_CHECK(again.size() == size);
  }
  const std::span<const std::byte> logits = bytes.first(size / 2);
  static_cast<void>(recua::cluster::decode_result(bytes, {}, 8));
  static_cast<void>(recua::cluster::decode_result(bytes.subspan(size / 2), logits, 8));
  static_cast<void>(recua::cluster::decode_failure(bytes));
  return 0;
}
