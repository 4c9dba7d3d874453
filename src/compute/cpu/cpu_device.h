#pragma once
/// The CPU as a Device: kernels of the best instruction set, on a team of threads of its own.
///
/// Weights are copied into their packed form (kernels/packed.h) by all threads when they are
/// loaded, and the mapped file's pages are dropped piece by piece, so that there is never a second
/// copy. They stay where they were mapped if `repack` is false, or if the instruction set has no
/// kernel for packed weights of the type. Operators compute at once, so sync() does nothing. A step
/// allocates nothing once the scratch memory has grown to its batch. Operators on little data run
/// on the calling thread alone, which changes no result.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "compute/device.h"

namespace recua::compute {

struct CpuDeviceOptions {
  std::size_t n_threads = 0;             // 0: one per physical core.
  std::string instruction_set = "auto";  // As sys::choose_instruction_set() takes it.
  bool repack = true;                    // False: all weights stay where they were mapped.
  /// Per thread the CPUs that it may run on (sys/placement.h); empty: anywhere.
  std::vector<std::vector<std::uint32_t>> cpus = {};
};

/// kInvalidArgument, kUnsupported: the instruction set or the number of threads (at most 1024).
Result<std::unique_ptr<Device>> make_cpu_device(const CpuDeviceOptions& options);

}  // namespace recua::compute
