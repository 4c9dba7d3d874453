#pragma once
/// Measures how fast this machine is at what a model asks of it: reading memory, and the device's
/// own products and attention. Takes about a second; remembered in a file.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "cluster/machines.h"
#include "compute/device.h"

namespace recua::cluster {

struct MachineProbeOptions {
  std::size_t n_threads = 1;  // That the device computes with; the memory is read by as many.
  std::vector<quant::DataType> types = {};  // Of weights; at least one.
  std::size_t width = 4096;  // Of the matrices: about the model's. A multiple of 256.
  std::chrono::duration<double> duration_each{0.1};     // Of each measurement, at least.
  std::size_t bytes_streamed = std::size_t{128} << 20;  // More than caches hold.
  std::filesystem::path folder =
      {};  // For a file of so many bytes, as models lie in; may be empty.
};

/// The best of several medians. macs_per_second is that of the first type. kResourceExhausted:
/// no memory to measure with. Nothing else should compute meanwhile.
Result<MachineSpeed> probe_machine(compute::Device& device, const MachineProbeOptions& options);

/// What a measurement is good for.
struct SpeedKey {
  std::string host;     // And its processor.
  std::string version;  // Of recua, and its build.
  std::uint32_t n_threads = 0;
  std::string model = {};  // Whatever of it the speed depends on.

  friend bool operator==(const SpeedKey&, const SpeedKey&) = default;
};

/// What is remembered; empty when that is nothing, or the file cannot be used.
std::optional<MachineSpeed> load_speed(const std::filesystem::path& file, const SpeedKey& key);
/// Replaces what is remembered for the key. kIo.
Result<void> store_speed(const std::filesystem::path& file, const SpeedKey& key,
                         const MachineSpeed& speed);

}  // namespace recua::cluster
