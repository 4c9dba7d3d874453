#pragma once
/// Numbers of the checkpoint format (docs/checkpoints.md).

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/checkpoint.h"

namespace recua::train {

inline constexpr std::string_view kCheckpointMagic = "RECUACKP";
inline constexpr std::uint32_t kCheckpointVersion = 1;
inline constexpr std::size_t kCheckpointHeaderBytesMax = std::size_t{1} << 20;

/// The header for these arrays, digests included.
std::vector<std::byte> checkpoint_header(const RunPosition& run, const std::string& settings,
                                         const AdamState& state);

}  // namespace recua::train
