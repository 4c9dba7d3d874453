#include "cluster/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "base/bytes.h"

namespace recua::cluster {
namespace {

std::uint64_t range_bytes(const ModelCost& model, std::uint32_t begin, std::uint32_t end) {
  std::uint64_t bytes = 0;
  for (std::uint32_t layer = begin; layer < end; ++layer) {
    bytes += model.layer_bytes[layer] + model.kv_layer_bytes;
  }
  if (begin == 0) bytes += model.first_bytes;
  if (end == model.layer_bytes.size()) bytes += model.last_bytes;
  return bytes;
}

/// Ends of the ranges when no worker uses more than `share` of its memory, as far right as they go;
/// empty when the layers do not all find a place.
std::vector<std::uint32_t> greedy_ends(const ModelCost& model, std::span<const WorkerOffer> workers,
                                       double share) {
  const auto n_layers = static_cast<std::uint32_t>(model.layer_bytes.size());
  std::vector<std::uint32_t> ends;
  std::uint32_t begin = 0;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const auto left =
        static_cast<std::uint32_t>(workers.size() - 1 - w);  // One layer each at least.
    const double budget = share * static_cast<double>(workers[w].memory_bytes);
    std::uint32_t end = begin;
    while (end + left < n_layers &&
           static_cast<double>(range_bytes(model, begin, end + 1)) <= budget) {
      ++end;
    }
    if (end == begin) return {};
    ends.push_back(end);
    begin = end;
  }
  return begin == n_layers ? ends : std::vector<std::uint32_t>{};
}

std::vector<std::uint32_t> ends_by_memory(const ModelCost& model,
                                          std::span<const WorkerOffer> workers) {
  // The smallest share of memory that works, by bisection; 1e6 stands for "far beyond anything".
  double low = 0.0;
  double high = 1e6;
  std::vector<std::uint32_t> best = greedy_ends(model, workers, high);
  for (int i = 0; i < 100 && !best.empty(); ++i) {
    const double middle = (low + high) / 2;
    if (auto ends = greedy_ends(model, workers, middle); !ends.empty()) {
      best = std::move(ends);
      high = middle;
    } else {
      low = middle;
    }
  }
  return best;
}

/// What a worker needs for its slice; kResourceExhausted when it has less.
Result<std::uint64_t> need_of(const ModelCost& model, const model::HyperParams& hyperparams,
                              const WorkerOffer& worker, const model::Slice& slice,
                              const std::function<std::uint64_t(const model::Slice&)>& part_bytes) {
  const std::uint64_t kv_head_bytes = model.kv_layer_bytes / hyperparams.n_kv_heads;
  const std::uint64_t cache = kv_head_bytes * model::own_share(slice, hyperparams).kv_heads.size() *
                              (slice.layer_end - slice.layer_begin);
  const std::uint64_t bytes = part_bytes(slice) + cache;
  if (bytes <= worker.memory_bytes) return bytes;
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("the model does not fit: {} has {} and would need {} for the layers {} "
                           "to {} as rank {} of {}; add a worker, or use a smaller -c",
                           worker.name, format_bytes(worker.memory_bytes), format_bytes(bytes),
                           slice.layer_begin, slice.layer_end - 1, slice.rank, slice.n_ranks)};
}

std::vector<std::uint32_t> ends_by_split(std::uint32_t n_layers, std::span<const double> split) {
  const double total = std::accumulate(split.begin(), split.end(), 0.0);
  const auto n = static_cast<std::uint32_t>(split.size());
  std::vector<std::uint32_t> ends;
  double sum = 0.0;
  for (std::uint32_t i = 0; i < n; ++i) {
    sum += split[i];
    const auto wanted = static_cast<std::uint32_t>(std::lround(sum / total * n_layers));
    const std::uint32_t begin = ends.empty() ? 0 : ends.back();
    ends.push_back(std::clamp(wanted, begin + 1, n_layers - (n - 1 - i)));
  }
  ends.back() = n_layers;
  return ends;
}

}  // namespace

Result<Plan> plan_layers(const ModelCost& model, std::span<const WorkerOffer> workers,
                         std::span<const double> split) {
  const auto n_layers = static_cast<std::uint32_t>(model.layer_bytes.size());
  if (workers.empty()) return Error{ErrorCode::kInvalidArgument, "no workers to plan for"};
  if (workers.size() > n_layers) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("{} workers for a model of {} layers: a layer split gives each worker at "
                    "least one layer, so use at most {}",
                    workers.size(), n_layers, n_layers)};
  }
  if (!split.empty() && split.size() != workers.size()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--split has {} parts for {} workers; give one number per worker",
                             split.size(), workers.size())};
  }
  for (const double part : split) {
    if (!(part > 0.0) || part > 1e9) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("--split: {} is not a positive number", part)};
    }
  }

  const std::vector<std::uint32_t> ends =
      split.empty() ? ends_by_memory(model, workers) : ends_by_split(n_layers, split);
  Plan plan;
  bool fits = ends.size() == workers.size();
  std::uint32_t begin = 0;
  for (std::size_t w = 0; w < ends.size(); ++w) {
    plan.slices.push_back({.layer_begin = begin, .layer_end = ends[w], .n_layers = n_layers});
    plan.slice_bytes.push_back(range_bytes(model, begin, ends[w]));
    fits = fits && plan.slice_bytes.back() <= workers[w].memory_bytes;
    begin = ends[w];
  }
  if (!fits) {
    std::string message = "the model does not fit:";
    for (std::size_t w = 0; w < workers.size(); ++w) {
      message += fmt::format("{} {} has {}", w == 0 ? "" : ",", workers[w].name,
                             format_bytes(workers[w].memory_bytes));
      if (w < plan.slice_bytes.size()) {
        message += fmt::format(" and would need {}", format_bytes(plan.slice_bytes[w]));
      }
    }
    message += fmt::format(
        "; weights and cache need {} in all: add a worker, a smaller -c, or a model "
        "with fewer bits",
        format_bytes(range_bytes(model, 0, n_layers)));
    return Error{ErrorCode::kResourceExhausted, message};
  }
  return plan;
}

Result<Plan> plan_ranks(const ModelCost& model, const model::HyperParams& hyperparams,
                        std::span<const WorkerOffer> workers, std::uint32_t n_ranks,
                        std::span<const double> split,
                        const std::function<std::uint64_t(const model::Slice&)>& part_bytes) {
  if (n_ranks == 1) return plan_layers(model, workers, split);
  if (n_ranks == 0 || workers.size() % n_ranks != 0) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--tp {} needs a multiple of {} workers, not {}", n_ranks, n_ranks,
                             workers.size())};
  }
  const std::size_t n_groups = workers.size() / n_ranks;
  std::vector<WorkerOffer> groups;
  for (std::size_t g = 0; g < n_groups; ++g) {
    const std::span<const WorkerOffer> members = workers.subspan(g * n_ranks, n_ranks);
    WorkerOffer& group = groups.emplace_back(members.front());
    for (const WorkerOffer& each : members) {
      group.memory_bytes = std::min(group.memory_bytes, each.memory_bytes);
      if (&each != &members.front()) group.name += "+" + each.name;
    }
    // What the slices really take is looked at below.
    group.memory_bytes = checked_mul<std::uint64_t>(group.memory_bytes, n_ranks)
                             .value_or(std::numeric_limits<std::uint64_t>::max());
  }
  std::vector<double> speeds(n_ranks, 1.0);
  std::span<const double> lengths = split;
  if (n_groups == 1 && !split.empty()) {
    if (split.size() != n_ranks) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("--split has {} parts for {} workers; give one number per worker",
                               split.size(), n_ranks)};
    }
    speeds.assign(split.begin(), split.end());
    lengths = {};
  }
  RECUA_ASSIGN_OR_RETURN(const Plan layers, plan_layers(model, groups, lengths));
  RECUA_ASSIGN_OR_RETURN(const std::vector<model::Share> shares,
                         model::divide(hyperparams, speeds));
  Plan plan;
  for (const model::Slice& layer_slice : layers.slices) {
    for (std::uint32_t r = 0; r < n_ranks; ++r) {
      model::Slice& slice = plan.slices.emplace_back(layer_slice);
      slice.rank = r;
      slice.n_ranks = n_ranks;
      slice.shares = shares;
      const WorkerOffer& worker = workers[plan.slices.size() - 1];
      RECUA_ASSIGN_OR_RETURN(const std::uint64_t bytes,
                             need_of(model, hyperparams, worker, slice, part_bytes));
      plan.slice_bytes.push_back(bytes);
    }
  }
  return plan;
}

Result<Plan> plan_as_told(const ModelCost& model, const model::HyperParams& hyperparams,
                          std::span<const WorkerOffer> workers, std::vector<model::Slice> slices,
                          const std::function<std::uint64_t(const model::Slice&)>& part_bytes) {
  if (slices.empty() || slices.size() != workers.size()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("a plan of {} slices for {} workers; expected one for each",
                             slices.size(), workers.size())};
  }
  Plan plan;
  for (std::size_t w = 0; w < slices.size(); ++w) {
    RECUA_RETURN_IF_ERROR(model::check_slice(slices[w], hyperparams));
    RECUA_ASSIGN_OR_RETURN(const std::uint64_t bytes,
                           need_of(model, hyperparams, workers[w], slices[w], part_bytes));
    plan.slice_bytes.push_back(bytes);
  }
  plan.slices = std::move(slices);
  return plan;
}

std::string describe(const Plan& plan, std::span<const WorkerOffer> workers) {
  std::string out = "layers ";
  for (std::size_t w = 0; w < plan.slices.size(); ++w) {
    const model::Slice& slice = plan.slices[w];
    if (slice.rank > 0) {
      out += fmt::format(" + {} ({})", workers[w].name, format_bytes(plan.slice_bytes[w]));
      continue;
    }
    out += fmt::format("{}{}-{} on {} ({})", w == 0 ? "" : " | ", slice.layer_begin,
                       slice.layer_end - 1, workers[w].name, format_bytes(plan.slice_bytes[w]));
  }
  return out;
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < std::size(kUnits)) {
    value /= 1024.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace recua::cluster
