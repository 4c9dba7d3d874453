#pragma once
/// How much memory this machine has, as the kernel and our control group see it.

#include <cstdint>

namespace recua::sys {

struct MemoryInfo {
  std::uint64_t total_bytes = 0;
  std::uint64_t available_bytes = 0;  // For new programs, without swapping.
};

/// Zeros when the system does not say.
MemoryInfo memory_info();

}  // namespace recua::sys
