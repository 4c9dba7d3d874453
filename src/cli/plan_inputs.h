#pragma once
/// Where `recua plan` gets its model and machines from.

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"

namespace recua::cli {

/// What the only machine is called when there are no workers.
inline constexpr const char* kPlanHere = "here";

/// A described or measured cluster, and what has to be said about how it came about.
struct PlanMachines {
  cluster::ClusterShape shape = {};
  std::vector<std::string> notes = {};
};

/// What is planned for. A model that is only described has no file, and none of its layers can be
/// timed.
struct PlannedModel {
  cluster::ModelShape shape = {};
  std::shared_ptr<const gguf::GgufFile> file = {};
  model::HyperParams hyperparams = {};
  quant::DataType k_type = quant::DataType::kF16;
  quant::DataType v_type = quant::DataType::kF16;
};

PlannedModel planned_model(std::shared_ptr<const gguf::GgufFile> file,
                           const model::HyperParams& hyperparams, quant::DataType k_type,
                           quant::DataType v_type);
/// A GGUF file, or a description when the name ends in ".json".
Result<PlannedModel> read_planned_model(const std::string& path, quant::DataType k_type,
                                        quant::DataType v_type);

/// --simulate: machines from a description.
Result<PlanMachines> described_machines(const std::string& path, const LinkFlags& links);

/// When this machine's speed is measured. It takes a second and should be alone.
enum class Measure {
  kOnce,    // Then it is remembered.
  kAlways,  // Again.
};

/// This machine, or the workers that the flags name: memory as they tell it, links as measured from
/// here, speed as measured here.
Result<PlanMachines> measured_machines(const PlannedModel& model, const ClusterFlags& flags,
                                       const LinkFlags& links, std::uint32_t n_threads,
                                       Measure measure);

}  // namespace recua::cli
