#pragma once
/// On which CPUs this process computes, as llama.cpp names it.

#include <cstdint>
#include <string>

#include "base/result.h"
#include "cli/app.h"
#include "sys/placement.h"

namespace recua::cli {

struct CpuFlags {
  std::string range;         // "LO-HI"
  std::uint32_t strict = 0;  // 0 or 1.
  std::string numa;          // distribute, isolate or numactl.

  void add(CLI::App& app);
  [[nodiscard]] bool any() const { return !range.empty() || strict != 0 || !numa.empty(); }
  /// What the flags ask for; n_threads as -t has it (0: one per core of the CPUs that are left).
  /// kInvalidArgument names the flag.
  [[nodiscard]] Result<sys::PlacementRequest> request(std::uint32_t n_threads) const;
  /// Places the threads on this machine's CPUs, and binds the calling thread (and so every thread
  /// that it starts) to all of them together. Errors as place_threads().
  [[nodiscard]] Result<sys::Placement> place(std::uint32_t n_threads) const;
};

}  // namespace recua::cli
