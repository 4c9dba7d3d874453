#pragma once
/// Which instruction set the kernels run with, found at start-up.

#include <span>
#include <string_view>

#include "base/result.h"

namespace recua::sys {

/// Of one architecture each includes the one before it. Each has a kernel table
/// (kernels/kernel_table.h).
enum class InstructionSet {
  kScalar,   // The reference: plain C++.
  kAvx2,     // AVX2 with FMA and F16C: x86 since about 2013.
  kAvx512,   // And AVX-512 F, BW, DQ, VL and VNNI: servers since about 2019, AMD's since 2022.
  kNeon,     // What every 64-bit Arm has (Armv8.0).
  kDotprod,  // And SDOT: Cortex-A76, Neoverse N1, Apple M1 and later.
  kI8mm,     // And SMMLA: Cortex-A710, Neoverse V1, Apple M2 and later.
};

std::string_view to_string(InstructionSet set);

/// Whether this CPU and operating system can run it.
bool supported(InstructionSet set);

/// All of this architecture, slowest first, whether this CPU can run them or not.
std::span<const InstructionSet> all_instruction_sets();

/// Those that can run here, slowest first; never empty.
std::span<const InstructionSet> supported_instruction_sets();

/// "auto" (or ""), "scalar", "avx2", "avx512", "neon", "dotprod", "i8mm". "auto" means the fastest,
/// unless the environment variable RECUA_INSTRUCTION_SET names another. kInvalidArgument: no such
/// set; kUnsupported: this CPU lacks it. Both list what can be had.
Result<InstructionSet> choose_instruction_set(std::string_view wanted);

}  // namespace recua::sys
