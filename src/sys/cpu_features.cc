#include "sys/cpu_features.h"

#include <array>
#include <cstdlib>
#include <string>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <fmt/format.h>

namespace recua::sys {
namespace {

constexpr std::array kHere = {
    InstructionSet::kScalar,
#if defined(__x86_64__)
    InstructionSet::kAvx2,
    InstructionSet::kAvx512,
#elif defined(__aarch64__)
    InstructionSet::kNeon,
    InstructionSet::kDotprod,
    InstructionSet::kI8mm,
#endif
};
constexpr std::array kEverywhere = {InstructionSet::kScalar,  InstructionSet::kAvx2,
                                    InstructionSet::kAvx512,  InstructionSet::kNeon,
                                    InstructionSet::kDotprod, InstructionSet::kI8mm};

// libgcc's CPU tests also ask the operating system (XGETBV) whether it saves the wide registers:
// those of 512 bits and the masks have bits of their own there, and without them every avx512 name
// is "no" whatever CPUID says.
bool cpu_has_avx2_fma_f16c() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool cpu_has_avx512_vnni() {
#if defined(__x86_64__)
  return cpu_has_avx2_fma_f16c() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// The kernel tells in bits what of Arm's extensions programs may use.
bool cpu_has_neon() {
#if defined(__aarch64__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0;
#else
  return false;
#endif
}

bool cpu_has_dotprod() {
#if defined(__aarch64__)
  return cpu_has_neon() && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}

bool cpu_has_i8mm() {
#if defined(__aarch64__)
  return cpu_has_dotprod() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#else
  return false;
#endif
}

std::string supported_names() {
  std::string names = "auto";
  for (const InstructionSet set : supported_instruction_sets()) {
    names += fmt::format(", {}", to_string(set));
  }
  return names;
}

}  // namespace

std::string_view to_string(InstructionSet set) {
  switch (set) {
    case InstructionSet::kScalar:
      return "scalar";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kNeon:
      return "neon";
    case InstructionSet::kDotprod:
      return "dotprod";
    case InstructionSet::kI8mm:
      return "i8mm";
  }
  return "?";
}

bool supported(InstructionSet set) {
  static const bool avx2 = cpu_has_avx2_fma_f16c();
  static const bool avx512 = cpu_has_avx512_vnni();
  static const bool neon = cpu_has_neon();
  static const bool dotprod = cpu_has_dotprod();
  static const bool i8mm = cpu_has_i8mm();
  switch (set) {
    case InstructionSet::kScalar:
      return true;
    case InstructionSet::kAvx2:
      return avx2;
    case InstructionSet::kAvx512:
      return avx512;
    case InstructionSet::kNeon:
      return neon;
    case InstructionSet::kDotprod:
      return dotprod;
    case InstructionSet::kI8mm:
      return i8mm;
  }
  return false;
}

std::span<const InstructionSet> all_instruction_sets() { return kHere; }

std::span<const InstructionSet> supported_instruction_sets() {
  // Each set includes the one before it, so what can run is the front of the list.
  std::size_t n = 0;
  while (n < kHere.size() && supported(kHere[n])) ++n;
  return all_instruction_sets().first(n);
}

Result<InstructionSet> choose_instruction_set(std::string_view wanted) {
  std::string_view from = "instruction set";
  if (wanted.empty() || wanted == "auto") {
    const char* env = std::getenv("RECUA_INSTRUCTION_SET");
    wanted = env == nullptr ? "" : env;
    from = "environment variable RECUA_INSTRUCTION_SET";
    if (wanted.empty() || wanted == "auto") return supported_instruction_sets().back();
  }
  for (const InstructionSet set : kEverywhere) {
    if (wanted != to_string(set)) continue;
    if (supported(set)) return set;
    return Error{ErrorCode::kUnsupported, fmt::format("{}: this CPU lacks \"{}\"; it can run: {}",
                                                      from, wanted, supported_names())};
  }
  return Error{ErrorCode::kInvalidArgument, fmt::format("{}: \"{}\" is unknown; use one of: {}",
                                                        from, wanted, supported_names())};
}

}  // namespace recua::sys
