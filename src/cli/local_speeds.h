#pragma once
/// How fast this machine is, measured once and then remembered in the user's cache folder.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "base/result.h"
#include "cli/plan_inputs.h"
#include "cluster/machine_probe.h"
#include "cluster/machines.h"
#include "cluster/measuring.h"

namespace recua::cli {

/// Where it is remembered.
std::filesystem::path speeds_file();

/// What to measure for a model, apart from its layers.
cluster::SpeedRequest speed_request(const cluster::ModelShape& model);

/// Products, memory and attention with these many threads, remembered unless asked for again. What
/// is remembered in `file` is for any model of about this width. `measured`: it was done now.
Result<cluster::MachineSpeed> measure_speed(const cluster::SpeedRequest& request,
                                            const std::filesystem::path& file,
                                            bool* measured = nullptr);

/// The same, corrected by layers of the model that is planned for.
class LocalSpeeds {
 public:
  /// model outlives this.
  LocalSpeeds(const PlannedModel& model, Measure measure);

  Result<cluster::MachineSpeed> with_threads(std::uint32_t n_threads);
  /// How another machine would do with this model, of which only products are known: what layers
  /// change here, they change there.
  Result<cluster::MachineSpeed> with_layers(cluster::MachineSpeed products,
                                            std::uint32_t n_threads_here);
  /// What to say about it.
  [[nodiscard]] std::string note() const;

 private:
  [[nodiscard]] cluster::SpeedKey key_of(std::uint32_t n_threads) const;
  Result<void> fit(std::uint32_t n_threads, cluster::MachineSpeed& speed) const;

  const PlannedModel* model_;
  cluster::SpeedRequest request_;
  Measure measure_;
  std::filesystem::path file_;
  std::map<std::uint32_t, cluster::MachineSpeed> known_;
  std::set<std::uint32_t> n_measured_;
  bool stored_ = true;
};

}  // namespace recua::cli
