#pragma once
/// Which recua this is.

#include <string>

namespace recua::cli {

/// "0.1.0".
std::string version();
/// The commit it was built from, shortened, or "unknown".
std::string build_commit();
/// "recua 0.1.0 (abc1234, g++ 12.2.0, avx2)".
std::string version_text();
/// "libibverbs 1.14", or "not built in".
std::string rdma_text();
/// "hwloc 2.9", or "not built in": then threads cannot be placed.
std::string topology_text();
/// The name of the processor, or "unknown".
std::string cpu_name();

}  // namespace recua::cli
