#pragma once
/// Sizes for people.

#include <cstdint>
#include <string>

namespace recua::cli {

/// "532 B", "1.2 KB", "638.2 MB", "4.7 GB": decimal units, as disks and model pages count.
std::string human_bytes(std::uint64_t bytes);

/// "260.0 K", "1.2 B": numbers of weights.
std::string human_count(std::uint64_t n);

}  // namespace recua::cli
