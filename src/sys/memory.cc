#include "sys/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

namespace recua::sys {
namespace {

/// A number alone in a file of the control group (version 2); the largest one when there is no
/// limit.
std::uint64_t control_group_value(const char* path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : std::numeric_limits<std::uint64_t>::max();
}

/// Of memory.stat: pages of files, which the kernel takes back when somebody needs memory.
std::uint64_t control_group_file_pages() {
  std::ifstream file("/sys/fs/cgroup/memory.stat");
  std::uint64_t bytes = 0;
  std::string name;
  for (std::uint64_t value = 0; file >> name >> value;) {
    if (name == "inactive_file" || name == "active_file") bytes += value;
  }
  return bytes;
}

}  // namespace

MemoryInfo memory_info() {
  MemoryInfo info;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string name;
    std::uint64_t kib = 0;
    fields >> name >> kib;
    if (name == "MemTotal:") info.total_bytes = kib * 1024;
    if (name == "MemAvailable:") info.available_bytes = kib * 1024;
  }
  const std::uint64_t limit = control_group_value("/sys/fs/cgroup/memory.max");
  if (limit < info.total_bytes) {
    std::uint64_t used = control_group_value("/sys/fs/cgroup/memory.current");
    used -= std::min(used, control_group_file_pages());
    info.total_bytes = limit;
    // Not 0, which would say that nobody knows.
    info.available_bytes = std::min(info.available_bytes, used < limit ? limit - used : 1);
  }
  return info;
}

}  // namespace recua::sys
