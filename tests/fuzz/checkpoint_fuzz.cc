// Checkpoints: as they come, and with the header's digest made right, so that what stands behind it
// is reached.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/sha256.h"
#include "train/checkpoint.h"

namespace {

void parse(std::span<const std::byte> bytes) {
  const auto header = recua::train::parse_checkpoint(bytes);
  if (!header.ok()) return;
  RECUA_CHECK(header->header_bytes + 12 * header->n_params == bytes.size());
  RECUA_CHECK(header->settings.size() <= recua::train::kSettingsBytesMax);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  parse(bytes);
  if (size < 64) return 0;
  std::vector<std::byte> mended(bytes.begin(), bytes.end());
  std::uint32_t header_bytes = 0;
  std::memcpy(&header_bytes, mended.data() + 12, sizeof(header_bytes));
  if (header_bytes < 64 || header_bytes > size) return 0;
  const recua::Digest digest = recua::sha256(std::span(mended).first(header_bytes - 32));
  std::copy(digest.begin(), digest.end(), mended.begin() + header_bytes - 32);
  parse(mended);
  return 0;
}
