#pragma once
/// The plan that a command runs by, whether a file gives it or the planner makes it.

#include <memory>
#include <string_view>

#include "base/result.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"
#include "model/slice_runner.h"

namespace recua::cli {

/// Instead of a plan's file: choose one, or give all workers layers by their free memory.
inline constexpr std::string_view kPlanAuto = "auto";
inline constexpr std::string_view kPlanLayers = "layers";

/// Takes the plan in flags.plan_file, if one is given: flags.workers become the machines that it
/// uses, in its order, and flags.slices what each holds; options.n_ubatch becomes the plan's if
/// that is smaller. Both stay empty for a plan of `recua plan` without workers: the model runs
/// here. Every error begins with the file's name and says which field is wrong and what would be
/// right: kInvalidArgument for a plan of another model, or a machine that --workers does not name;
/// kNotFound, kIo for the file. kPlanAuto instead of a file: as `recua plan` chooses for
/// flags.workers. Says what was chosen and why.
///
/// Two workers or more without a plan, shares or ranks: as kPlanAuto, but layers by memory when no
/// plan can be made; only a worker that does not answer is an error (kUnavailable, kTimeout).
/// Choosing asks the workers, and measures what nobody remembers; blocks.
Result<void> take_plan(ClusterFlags& flags, const LinkFlags& links,
                       std::shared_ptr<const gguf::GgufFile> file,
                       const model::HyperParams& hyperparams, model::SliceOptions& options);

}  // namespace recua::cli
