#pragma once
/// Workers on this machine that live as long as the command that started them (--local-workers N).

#include <cstdint>
#include <filesystem>
#include <string>
#include <sys/types.h>
#include <vector>

#include "base/result.h"
#include "net/connection.h"

namespace recua::cli {

class LocalWorkers {
 public:
  /// Starts n processes of this program on loopback, with models_dir as their own files, and waits
  /// until they listen. n_threads each; arguments: further ones for each. kUnavailable, kTimeout:
  /// says what the worker said.
  static Result<LocalWorkers> start(std::uint32_t n, const std::filesystem::path& models_dir,
                                    std::uint32_t n_threads,
                                    const std::vector<std::string>& arguments);

  LocalWorkers() = default;
  LocalWorkers(LocalWorkers&& other) noexcept;
  LocalWorkers& operator=(LocalWorkers&& other) noexcept;
  LocalWorkers(const LocalWorkers&) = delete;
  LocalWorkers& operator=(const LocalWorkers&) = delete;
  ~LocalWorkers();  // Asks them to end, waits for a moment, ends them.

  [[nodiscard]] const std::vector<net::Endpoint>& endpoints() const { return endpoints_; }

 private:
  void stop();

  std::vector<pid_t> processes_;
  std::vector<net::Endpoint> endpoints_;
};

}  // namespace recua::cli
