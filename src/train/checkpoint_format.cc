#include "train/checkpoint_format.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/sha256.h"

namespace recua::train {
namespace {

constexpr std::size_t kDigestBytes = sizeof(Digest);

Error corrupt(std::string_view what) { return {ErrorCode::kCorrupt, std::string(what)}; }

std::optional<Digest> read_digest(ByteReader& reader) {
  const auto bytes = reader.take(kDigestBytes);
  if (!bytes) return std::nullopt;
  Digest out{};
  std::copy(bytes->begin(), bytes->end(), out.begin());
  return out;
}

}  // namespace

std::vector<std::byte> checkpoint_header(const RunPosition& run, const std::string& settings,
                                         const AdamState& state) {
  RECUA_CHECK(settings.size() <= kSettingsBytesMax);
  ByteWriter out;
  out.write_bytes(as_bytes(kCheckpointMagic));
  out.write(kCheckpointVersion);
  const std::size_t fields = 8 + 4 + 4 + 3 * 8 + 8 + 3 * kDigestBytes + 4 + settings.size();
  const std::size_t size = align_up(fields + kDigestBytes, std::size_t{64});
  out.write(static_cast<std::uint32_t>(size));
  out.write(run.step);
  out.write(run.position);
  out.write(static_cast<std::uint64_t>(state.params.size()));
  out.write(run.best_loss);
  for (const std::span<const float> array : {state.params, state.m, state.v}) {
    out.write_bytes(sha256(std::as_bytes(array)));
  }
  out.write(static_cast<std::uint32_t>(settings.size()));
  out.write_bytes(as_bytes(settings));
  out.write_zeros(size - kDigestBytes - out.size());
  out.write_bytes(sha256(out.bytes()));
  return std::move(out).take();
}

Result<CheckpointHeader> parse_checkpoint(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  const auto magic = reader.take(kCheckpointMagic.size());
  if (!magic || as_text(*magic) != kCheckpointMagic) {
    return corrupt("it does not begin with RECUACKP: no checkpoint of recua");
  }
  const auto version = reader.read<std::uint32_t>();
  const auto header_bytes = reader.read<std::uint32_t>();
  if (!version || !header_bytes) return corrupt("it ends within its header");
  if (*version != kCheckpointVersion) {
    return corrupt(fmt::format("its version is {}, must be {}", *version, kCheckpointVersion));
  }
  if (*header_bytes > kCheckpointHeaderBytesMax || *header_bytes % 64 != 0 ||
      *header_bytes > bytes.size() || *header_bytes < 64) {
    return corrupt(
        fmt::format("its header says {} bytes, the file has {}", *header_bytes, bytes.size()));
  }
  const auto covered = bytes.first(*header_bytes - kDigestBytes);
  ByteReader digest_reader(bytes.subspan(covered.size(), kDigestBytes));
  if (read_digest(digest_reader) != sha256(covered)) {
    return corrupt("its header's digest is not that of its bytes");
  }
  ByteReader fields(covered);
  (void)fields.take(16);
  CheckpointHeader out;
  const auto step = fields.read<std::uint64_t>();
  const auto position = fields.read<std::uint64_t>();
  const auto n_params = fields.read<std::uint64_t>();
  const auto best_loss = fields.read<double>();
  std::optional<Digest> digests[3];
  for (auto& digest : digests) digest = read_digest(fields);
  const auto settings_bytes = fields.read<std::uint32_t>();
  if (!settings_bytes) return corrupt("it ends within its header");
  if (*settings_bytes > kSettingsBytesMax) {
    return corrupt(fmt::format("its settings have {} bytes, at most {} are allowed",
                               *settings_bytes, kSettingsBytesMax));
  }
  const auto settings = fields.take(*settings_bytes);
  if (!settings) return corrupt("its settings do not fit its header");
  const auto array_bytes = checked_mul<std::uint64_t>(*n_params, 3 * sizeof(float));
  const std::uint64_t there = bytes.size() - *header_bytes;
  if (!array_bytes || *array_bytes != there) {
    return corrupt(fmt::format("{} bytes follow its header, {} parameters need 12 bytes each",
                               there, *n_params));
  }
  constexpr std::string_view kNames[] = {"parameters", "first moments", "second moments"};
  const std::size_t one = static_cast<std::size_t>(there) / 3;
  for (std::size_t i = 0; i < 3; ++i) {
    if (digests[i] != sha256(bytes.subspan(*header_bytes + i * one, one))) {
      return corrupt(fmt::format("the digest of its {} is not that of their bytes", kNames[i]));
    }
  }
  out.run = {.step = *step, .position = *position, .best_loss = *best_loss};
  out.n_params = *n_params;
  out.settings = as_text(*settings);
  out.header_bytes = *header_bytes;
  return out;
}

}  // namespace recua::train
