#include "cluster/split_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "cluster/plan.h"
#include "cluster/stage.h"

namespace recua::cluster {
namespace {

// Columns and rows are divided in multiples of this where there are enough of them: whole blocks
// of the small quantized types, whole cache lines of outputs.
constexpr std::uint32_t kColumnGranule = 32;

// The forward pass computes this many rows of logits at a time; what is sent of them.
constexpr std::uint64_t kLogitRows = 64;
constexpr std::uint64_t kLogitBytesSent = std::uint64_t{48} << 20;

std::uint32_t column_granule(std::uint32_t n, std::size_t n_parts) {
  return n % kColumnGranule == 0 && n / kColumnGranule >= n_parts ? kColumnGranule : 1;
}

/// part / whole of bytes, rounded up.
std::uint64_t share_of(std::uint64_t bytes, std::uint32_t part, std::uint32_t whole) {
  if (part >= whole) return bytes;
  // Sizes of files are far below 2^53, so double loses nothing that matters.
  return static_cast<std::uint64_t>(
      std::ceil(static_cast<double>(bytes) * static_cast<double>(part) / whole));
}

std::uint64_t total_bytes(const std::vector<MatrixShape>& matrices) {
  std::uint64_t bytes = 0;
  for (const MatrixShape& matrix : matrices) bytes += matrix.n_bytes;
  return bytes;
}

Error misfit(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

/// Whether ranges cover [0, n) once and in order.
bool covers(const std::vector<RankShare>& ranks, IndexRange RankShare::* range, std::uint32_t n) {
  std::uint32_t next = 0;
  for (const RankShare& rank : ranks) {
    const IndexRange& own = rank.*range;
    if (own.begin != next || own.end < own.begin) return false;
    next = own.end;
  }
  return next == n;
}

}  // namespace

std::uint32_t SplitPlan::n_machines() const {
  std::size_t n = 0;
  for (const StagePlan& stage : stages) n += stage.ranks.size();
  return static_cast<std::uint32_t>(n);
}

std::uint32_t SplitPlan::n_ranks_max() const {
  std::size_t n = 0;
  for (const StagePlan& stage : stages) n = std::max(n, stage.ranks.size());
  return static_cast<std::uint32_t>(n);
}

IndexRange kv_heads_of(const ModelShape& model, IndexRange heads) {
  const std::uint32_t group = model.n_heads / model.n_kv_heads;
  return {.begin = heads.begin / group, .end = (heads.end + group - 1) / group};
}

std::vector<IndexRange> divide(std::uint32_t n, std::uint32_t granule,
                               const std::vector<double>& weights) {
  const std::uint32_t n_granules = n / granule;
  const auto n_parts = static_cast<std::uint32_t>(weights.size());
  const std::uint32_t least = n_granules >= n_parts ? 1 : 0;
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<IndexRange> parts;
  double sum = 0.0;
  std::uint32_t begin = 0;
  for (std::uint32_t i = 0; i < n_parts; ++i) {
    sum += weights[i];
    const auto wanted = static_cast<std::uint32_t>(std::lround(sum / total * n_granules));
    std::uint32_t end = std::clamp(wanted, begin + least, n_granules - least * (n_parts - 1 - i));
    if (i + 1 == n_parts) end = n_granules;
    parts.push_back({.begin = begin * granule, .end = end * granule});
    begin = end;
  }
  parts.back().end = n;
  return parts;
}

std::vector<RankShare> divide_stage(const ModelShape& model, const std::vector<double>& speeds) {
  const std::size_t n = speeds.size();
  const std::uint32_t group = model.n_heads / model.n_kv_heads;
  const std::vector<IndexRange> heads =
      divide(model.n_heads, n <= model.n_kv_heads ? group : 1, speeds);
  const std::vector<IndexRange> ffn =
      divide(model.ffn_size, column_granule(model.ffn_size, n), speeds);
  const std::vector<IndexRange> vocab =
      divide(model.vocab_size, column_granule(model.vocab_size, n), speeds);
  std::vector<RankShare> ranks(n);
  for (std::size_t r = 0; r < n; ++r) {
    ranks[r] = {.machine = 0, .heads = heads[r], .ffn = ffn[r], .vocab = vocab[r]};
  }
  return ranks;
}

LayerBytes& LayerBytes::operator+=(const LayerBytes& other) {
  heads += other.heads;
  kv += other.kv;
  ffn += other.ffn;
  whole += other.whole;
  return *this;
}

LayerBytes operator-(LayerBytes a, const LayerBytes& b) {
  a.heads -= b.heads;
  a.kv -= b.kv;
  a.ffn -= b.ffn;
  a.whole -= b.whole;
  return a;
}

LayerBytes layer_bytes(const LayerShape& layer) {
  return {.heads = total_bytes(layer.heads),
          .kv = total_bytes(layer.kv),
          .ffn = total_bytes(layer.ffn),
          .whole = total_bytes(layer.whole) + layer.vector_bytes};
}

MemoryNeed memory_need(const ModelShape& model, const StagePlan& stage, std::size_t rank,
                       const MemoryOptions& options) {
  LayerBytes sum;
  for (std::uint32_t l = stage.layers.begin; l < stage.layers.end; ++l) {
    sum += layer_bytes(model.layers[l]);
  }
  return memory_need(model, sum, stage, rank, options);
}

MemoryNeed memory_need(const ModelShape& model, const LayerBytes& layers, const StagePlan& stage,
                       std::size_t rank, const MemoryOptions& options) {
  const RankShare& share = stage.ranks[rank];
  const std::uint32_t n_kv = kv_heads_of(model, share.heads).size();
  const bool is_first = stage.layers.begin == 0;
  const bool is_last = stage.layers.end == model.n_layers();
  MemoryNeed need;
  need.weights = share_of(layers.heads, share.heads.size(), model.n_heads) +
                 share_of(layers.kv, n_kv, model.n_kv_heads) +
                 share_of(layers.ffn, share.ffn.size(), model.ffn_size) + layers.whole;
  const auto vocab_part = [&](const MatrixShape& matrix) {
    return share_of(matrix.n_bytes, share.vocab.size(), model.vocab_size);
  };
  if (is_first) need.weights += vocab_part(model.embedding);
  if (is_last) {
    need.weights += model.end_vector_bytes;
    if (!(model.tied && is_first)) need.weights += vocab_part(model.output);
  }
  need.cache = share_of(model.kv_token_bytes, n_kv, model.n_kv_heads) * options.n_cache_tokens *
               stage.layers.size();

  // Rows that the forward pass keeps (model/activations.h), and the rings (cluster/stage.h).
  const std::uint64_t n_rows = options.n_ubatch;
  const std::uint64_t n_used = model.n_experts == 0 ? 1 : model.n_experts_used;
  const std::uint64_t hidden = model.hidden_size;
  const std::uint64_t expert_out = model.n_experts == 0 ? 0 : n_used * hidden;
  std::uint64_t floats =
      n_rows * (8 * hidden + 3 * std::uint64_t{share.heads.size()} * model.head_dim +
                2 * n_used * share.ffn.size() + expert_out);
  if (!is_first) floats += n_rows * hidden * kSlotsPerHop;
  // A slot per peer for partial sums, and one to send from.
  if (stage.ranks.size() > 1) floats += n_rows * hidden * (stage.ranks.size() + 1);
  floats += is_last ? kLogitRows * model.vocab_size : 3 * n_rows * hidden;
  need.working =
      floats * sizeof(float) + kSlotsPerHop * kDescriptorBytesMax + (is_last ? kLogitBytesSent : 0);
  return need;
}

Result<void> check_plan(const ModelShape& model, const ClusterShape& cluster,
                        const SplitPlan& plan) {
  if (plan.stages.empty()) return misfit("the plan has no stages");
  std::vector<bool> used(cluster.machines.size(), false);
  std::uint32_t next = 0;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    const StagePlan& stage = plan.stages[s];
    if (stage.layers.begin != next || stage.layers.end <= stage.layers.begin) {
      return misfit(
          fmt::format("stage {} has the layers {} up to {}, but the next one to give is {}", s,
                      stage.layers.begin, stage.layers.end, next));
    }
    next = stage.layers.end;
    if (stage.ranks.empty()) return misfit(fmt::format("stage {} has no ranks", s));
    if (stage.ranks.size() > model.n_heads) {
      return misfit(
          fmt::format("stage {} has {} ranks, but the model has {} query heads to divide: use 1 to "
                      "{} ranks",
                      s, stage.ranks.size(), model.n_heads, model.n_heads));
    }
    for (const RankShare& rank : stage.ranks) {
      if (rank.machine >= cluster.machines.size()) {
        return misfit(fmt::format("stage {} names machine {}, but there are {}", s, rank.machine,
                                  cluster.machines.size()));
      }
      if (used[rank.machine]) {
        return misfit(fmt::format("stage {} uses {}, which has another share already", s,
                                  cluster.machines[rank.machine].name));
      }
      used[rank.machine] = true;
      if (rank.heads.size() == 0) {
        return misfit(
            fmt::format("stage {} gives {} no heads", s, cluster.machines[rank.machine].name));
      }
    }
    const auto divided = [&](IndexRange RankShare::* range, std::uint32_t n,
                             const char* what) -> Result<void> {
      if (covers(stage.ranks, range, n)) return ok();
      return misfit(
          fmt::format("stage {} does not divide the model's {} {} among its ranks, in "
                      "order and each once",
                      s, n, what));
    };
    RECUA_RETURN_IF_ERROR(divided(&RankShare::heads, model.n_heads, "query heads"));
    RECUA_RETURN_IF_ERROR(divided(&RankShare::ffn, model.ffn_size, "feed-forward columns"));
    RECUA_RETURN_IF_ERROR(divided(&RankShare::vocab, model.vocab_size, "vocabulary rows"));
  }
  if (next != model.n_layers()) {
    return misfit(
        fmt::format("the plan gives {} layers, but the model has {}", next, model.n_layers()));
  }
  return ok();
}

Result<void> check_memory(const ModelShape& model, const ClusterShape& cluster,
                          const SplitPlan& plan, const MemoryOptions& options) {
  constexpr int kNamesMax = 8;
  int n_short = 0;
  std::string message;
  for (const StagePlan& stage : plan.stages) {
    for (std::size_t r = 0; r < stage.ranks.size(); ++r) {
      const Machine& machine = cluster.machines[stage.ranks[r].machine];
      const MemoryNeed need = memory_need(model, stage, r, options);
      if (need.total() <= machine.memory_bytes) continue;
      if (++n_short > kNamesMax) continue;
      message += fmt::format(
          "{} {} has {} and would need {} (weights {}, cache {}, working memory {}), {} more",
          n_short == 1 ? "" : ",", machine.name, format_bytes(machine.memory_bytes),
          format_bytes(need.total()), format_bytes(need.weights), format_bytes(need.cache),
          format_bytes(need.working), format_bytes(need.total() - machine.memory_bytes));
    }
  }
  if (n_short == 0) return ok();
  if (n_short > kNamesMax) message += fmt::format(", and {} more machines", n_short - kNamesMax);
  return Error{ErrorCode::kResourceExhausted, "the model does not fit:" + message};
}

namespace {

std::string names_of(const StagePlan& stage, const ClusterShape& cluster, std::size_t n_max) {
  std::string out;
  for (std::size_t r = 0; r < stage.ranks.size() && r < n_max; ++r) {
    out += (r == 0 ? "" : ", ") + cluster.machines[stage.ranks[r].machine].name;
  }
  if (stage.ranks.size() > n_max) out += fmt::format(" and {} more", stage.ranks.size() - n_max);
  return out;
}

}  // namespace

std::string describe(const SplitPlan& plan, const ClusterShape& cluster) {
  constexpr std::size_t kStagesMax = 8;
  const std::size_t n_names_max = plan.stages.size() <= 2 ? 8 : 4;
  std::string out;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    const bool left_out = plan.stages.size() > kStagesMax && s >= kStagesMax - 2;
    if (left_out && s + 1 < plan.stages.size()) continue;
    if (left_out) out += fmt::format(" | {} stages more", plan.stages.size() - kStagesMax + 1);
    const StagePlan& stage = plan.stages[s];
    out += s == 0 ? "layers " : " | ";
    out += stage.layers.size() == 1
               ? fmt::format("{}", stage.layers.begin)
               : fmt::format("{}-{}", stage.layers.begin, stage.layers.end - 1);
    out += " on " + names_of(stage, cluster, stage.ranks.size() > 8 ? 1 : n_names_max);
  }
  return out;
}

std::string kind_of(const SplitPlan& plan) {
  const std::size_t n_stages = plan.stages.size();
  std::size_t least = plan.stages.front().ranks.size();
  for (const StagePlan& stage : plan.stages) least = std::min(least, stage.ranks.size());
  const std::uint32_t most = plan.n_ranks_max();
  if (n_stages == 1) return most == 1 ? "one machine" : fmt::format("tensor {}", most);
  if (most == 1) return fmt::format("layers {}", n_stages);
  const std::string ranks =
      least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most);
  return fmt::format("layers {} x tensor {}", n_stages, ranks);
}

}  // namespace recua::cluster
