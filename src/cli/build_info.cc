#include "cli/build_info.h"

#include <fstream>

#include <fmt/format.h>

#include "net/verbs/ibv_provider.h"
#include "sys/cpu_features.h"
#include "sys/topology.h"

namespace recua::cli {

std::string version() { return RECUA_VERSION; }

std::string build_commit() { return RECUA_BUILD_COMMIT; }

std::string version_text() {
#if defined(__clang__)
  const std::string compiler = fmt::format("clang {}.{}", __clang_major__, __clang_minor__);
#else
  const std::string compiler = fmt::format("g++ {}.{}", __GNUC__, __GNUC_MINOR__);
#endif
  return fmt::format("recua {} ({}, {}, {})", version(), build_commit(), compiler,
                     sys::to_string(sys::supported_instruction_sets().back()));
}

std::string rdma_text() {
  return net::verbs::built_with_verbs() ? std::string(net::verbs::verbs_version()) : "not built in";
}

std::string topology_text() { return sys::topology_library(); }

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace recua::cli
