#pragma once
/// The planner: which worker holds which layers. A pure function, inputs in, plan out.
///
/// By memory, or as the user says. By speeds and links: plan_search.h, whose plans come here as
/// plan_as_told().

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "model/hyperparams.h"
#include "model/slice.h"

namespace recua::cluster {

/// More ranks of one group would wait for each other longer than they compute.
inline constexpr std::uint32_t kRanksMax = 64;

/// What a model needs where. All sizes in bytes.
struct ModelCost {
  std::vector<std::uint64_t> layer_bytes;  // Weights of each layer.
  std::uint64_t first_bytes = 0;           // Embedding table: with the first layer.
  std::uint64_t last_bytes = 0;            // Output norm and matrix: with the last layer.
  std::uint64_t kv_layer_bytes = 0;        // KV cache of one layer.
};

struct WorkerOffer {
  std::string name;                // For messages: "b:7500".
  std::uint64_t memory_bytes = 0;  // What it may use.
};

struct Plan {
  std::vector<model::Slice> slices;        // One per worker, in order.
  std::vector<std::uint64_t> slice_bytes;  // Weights and cache of each.
};

/// Contiguous layer ranges, at least one layer each, that minimize the largest share of a worker's
/// memory. split, when not empty, gives the ranges' relative lengths instead ("2,1").
/// kInvalidArgument: more workers than layers, a split of another length.
/// kResourceExhausted: the model does not fit; says what each worker has and would need.
Result<Plan> plan_layers(const ModelCost& model, std::span<const WorkerOffer> workers,
                         std::span<const double> split);

/// Groups of n_ranks consecutive workers that have their layers in common (docs/parallelism.md);
/// n_ranks 1 is plan_layers(). split gives the groups' relative lengths when there are several, the
/// ranks' relative shares when there is one. part_bytes: what a slice keeps of all tensors.
/// kInvalidArgument: workers that make no whole groups, more ranks than query heads.
Result<Plan> plan_ranks(const ModelCost& model, const model::HyperParams& hyperparams,
                        std::span<const WorkerOffer> workers, std::uint32_t n_ranks,
                        std::span<const double> split,
                        const std::function<std::uint64_t(const model::Slice&)>& part_bytes);

/// A plan that was made elsewhere: one slice per worker, in order (plan_slices.h). part_bytes as
/// above. kInvalidArgument: a slice that does not fit the model. kResourceExhausted: the worker's
/// memory.
Result<Plan> plan_as_told(const ModelCost& model, const model::HyperParams& hyperparams,
                          std::span<const WorkerOffer> workers, std::vector<model::Slice> slices,
                          const std::function<std::uint64_t(const model::Slice&)>& part_bytes);

/// "layers 0-7 on a:7500 (3.1 GiB) | 8-15 on b:7500 (3.4 GiB)"
std::string describe(const Plan& plan, std::span<const WorkerOffer> workers);

/// "3.1 GiB", "260.0 KiB".
std::string format_bytes(std::uint64_t bytes);

}  // namespace recua::cluster
