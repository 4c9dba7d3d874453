#pragma once
/// Plans as files (JSON), so that one can be looked at, changed by hand and forced. The format:
/// docs/planning.md, "Plan files".

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "cluster/split_plan.h"

namespace recua::cluster {

std::string plan_json(const ModelShape& model, const ClusterShape& cluster, const SplitPlan& plan);

/// where: the file's name, for messages. kInvalidArgument: not such a file; made for another model
/// (names every size that differs), or for machines that are not there; or check_plan() refuses it.
Result<SplitPlan> parse_plan(std::string_view text, std::string_view where, const ModelShape& model,
                             const ClusterShape& cluster);

/// The machines that a plan names, in order, each once, before anything else of it is looked at.
/// kInvalidArgument: not such a file.
Result<std::vector<std::string>> machines_of_plan(std::string_view text, std::string_view where);

}  // namespace recua::cluster
