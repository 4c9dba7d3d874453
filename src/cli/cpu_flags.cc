#include "cli/cpu_flags.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/log.h"
#include "sys/topology.h"

namespace recua::cli {
namespace {

std::optional<std::uint32_t> cpu_number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Error invalid(std::string message) {
  return Error{ErrorCode::kInvalidArgument, std::move(message)};
}

}  // namespace

void CpuFlags::add(CLI::App& app) {
  app.add_option("--cpu-range", range,
                 "Compute on the CPUs LO to HI only (default: all that the process may use)")
      ->type_name("LO-HI");
  app.add_option("--cpu-strict", strict,
                 "1: a CPU for each thread, of different cores as far as they go")
      ->type_name("0|1")
      ->capture_default_str();
  app.add_option("--numa", numa,
                 "With several memories: distribute (threads over all of them), isolate (only the "
                 "one where the process started) or numactl (over those that numactl chose)")
      ->type_name("POLICY");
}

Result<sys::PlacementRequest> CpuFlags::request(std::uint32_t n_threads) const {
  sys::PlacementRequest out{.n_threads = n_threads};
  if (!range.empty()) {
    const std::size_t dash = range.find('-');
    const auto first = cpu_number(std::string_view(range).substr(0, dash));
    const auto last =
        dash == std::string::npos ? first : cpu_number(std::string_view(range).substr(dash + 1));
    if (!first || !last) {
      return invalid(fmt::format("--cpu-range is '{}', need LO-HI such as 0-3", range));
    }
    out.range = sys::PlacementRequest::Range{.first = *first, .last = *last};
  }
  if (strict > 1) return invalid(fmt::format("--cpu-strict is {}, need 0 or 1", strict));
  out.strict = strict == 1;
  if (numa == "distribute") {
    out.numa = sys::NumaPolicy::kDistribute;
  } else if (numa == "isolate") {
    out.numa = sys::NumaPolicy::kIsolate;
  } else if (numa == "numactl") {
    out.numa = sys::NumaPolicy::kNumactl;
  } else if (!numa.empty()) {
    return invalid(fmt::format("--numa is '{}', need distribute, isolate or numactl", numa));
  }
  out.here = sys::current_cpu();
  return out;
}

Result<sys::Placement> CpuFlags::place(std::uint32_t n_threads) const {
  RECUA_ASSIGN_OR_RETURN(const sys::PlacementRequest wanted, request(n_threads));
  RECUA_ASSIGN_OR_RETURN(sys::Placement out, sys::place_threads(sys::detect_topology(), wanted));
  if (out.cpus.empty()) return out;
  std::vector<std::uint32_t> all;
  for (const auto& cpus : out.cpus) all.insert(all.end(), cpus.begin(), cpus.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  log_info("{} threads on the CPUs {}", out.n_threads, sys::cpu_list(all));
  if (!sys::bind_this_thread(all)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("the system does not let this process run on the CPUs {} only: leave "
                             "--cpu-range, --cpu-strict and --numa away",
                             sys::cpu_list(all))};
  }
  return out;
}

}  // namespace recua::cli
