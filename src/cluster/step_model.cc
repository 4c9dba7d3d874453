// Sums over layers are kept per (speed, rows), so that a stage of any range costs a subtraction:
// the search asks for hundreds of thousands of them.
#include "cluster/step_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "collective/calibrate.h"
#include "model/forward.h"

namespace recua::cluster {
namespace {

// Operators of a layer's forward pass (model/forward.cc): two norms, seven products, two
// rotations, the cache, attention, the gate and two sums; experts add the router's two and one.
constexpr double kOperatorsDense = 16.0;
constexpr double kOperatorsExperts = 18.0;

// Floats that pass through memory per row and layer besides matrices, in widths: norms read and
// write twice the hidden size, sums read two and write one, products quantize and write theirs.
constexpr double kHiddenPasses = 16.0;
constexpr double kHeadPasses = 6.0;
constexpr double kFfnPasses = 8.0;

// Of what could travel while the other half of a micro-batch is computed, what does: 0.7 to 0.85 of
// it between two ranks on links of 1 to 10 Gbit/s (docs/parallelism.md). The rest waits for a rank
// to take it off its rings.
constexpr double kHiddenShare = 0.7;

// A row of logits is written, gathered, and read by the sampler.
constexpr double kLogitPasses = 3.0;

TypeSpeed speed_of(const MachineSpeed& speed, quant::DataType type) {
  for (const TypeSpeed& known : speed.by_type) {
    if (known.type == type) {
      TypeSpeed out = known;
      if (out.macs_per_second <= 0.0) out.macs_per_second = speed.macs_per_second;
      if (out.decode_macs_per_second <= 0.0) out.decode_macs_per_second = out.macs_per_second;
      return out;
    }
  }
  return {.type = type,
          .macs_per_second = speed.macs_per_second,
          .decode_macs_per_second = speed.macs_per_second};
}

double attention_speed(const MachineSpeed& speed) {
  return speed.attention_macs_per_second > 0.0 ? speed.attention_macs_per_second
                                               : speed.macs_per_second / 4.0;
}

double attention_decode_speed(const MachineSpeed& speed) {
  return speed.attention_decode_macs_per_second > 0.0 ? speed.attention_decode_macs_per_second
                                                      : attention_speed(speed);
}

/// What is left for each of n_active machines of a host.
MachineSpeed shared(MachineSpeed speed, const HostLimits& limits, std::uint32_t n_active) {
  const auto left = [n_active](double own, double limit) {
    return limit > 0.0 ? std::min(own, limit / n_active) : own;
  };
  // Types that nobody measured together suffer as the rest does: decode was measured with weights
  // from memory.
  const double bytes = left(speed.bytes_per_second, limits.bytes_per_second);
  const double macs = left(speed.macs_per_second, limits.macs_per_second);
  const double bytes_scale = bytes / speed.bytes_per_second;
  const double macs_scale = macs / speed.macs_per_second;
  for (TypeSpeed& type : speed.by_type) {
    const auto together =
        std::find_if(limits.by_type.begin(), limits.by_type.end(),
                     [&](const TypeSpeed& limit) { return limit.type == type.type; });
    const TypeSpeed limit = together == limits.by_type.end() ? TypeSpeed{} : *together;
    type.macs_per_second = limit.macs_per_second > 0.0
                               ? left(type.macs_per_second, limit.macs_per_second)
                               : type.macs_per_second * macs_scale;
    type.decode_macs_per_second =
        limit.decode_macs_per_second > 0.0
            ? left(type.decode_macs_per_second, limit.decode_macs_per_second)
            : type.decode_macs_per_second * bytes_scale;
  }
  speed.attention_decode_macs_per_second =
      limits.attention_decode_macs_per_second > 0.0
          ? left(attention_decode_speed(speed), limits.attention_decode_macs_per_second)
          : attention_decode_speed(speed) * macs_scale;
  speed.attention_macs_per_second =
      limits.attention_macs_per_second > 0.0
          ? left(attention_speed(speed), limits.attention_macs_per_second)
          : attention_speed(speed) * macs_scale;
  speed.bytes_per_second = bytes;
  speed.macs_per_second = macs;
  return speed;
}

}  // namespace

double all_reduce_seconds(double bytes, std::size_t n_ranks, const LinkSpec& link) {
  if (n_ranks <= 1) return 0.0;
  const auto n = static_cast<double>(n_ranks);
  // One message to each peer, of everything or of the peer's part.
  const auto exchange = [&](double message_bytes) {
    return link.latency_seconds +
           (n - 1.0) * (message_bytes / link.bytes_per_second + link.message_seconds);
  };
  return std::min(exchange(bytes), 2.0 * exchange(bytes / n));
}

double operators_per_layer(const ModelShape& model) {
  return model.n_experts == 0 ? kOperatorsDense : kOperatorsExperts;
}

std::vector<std::uint32_t> active_per_host(const ClusterShape& cluster, const SplitPlan& plan,
                                           bool all_stages) {
  std::vector<std::uint32_t> active(cluster.machines.size(), 1);
  if (cluster.hosts.empty()) return active;
  std::vector<std::uint32_t> per_host(cluster.hosts.size(), 0);
  const auto count = [&](const StagePlan& stage, std::uint32_t by) {
    for (const RankShare& rank : stage.ranks) {
      const std::uint32_t host = cluster.machines[rank.machine].host;
      if (host != kOwnHost) per_host[host] += by;
    }
  };
  const auto store = [&](const StagePlan& stage) {
    for (const RankShare& rank : stage.ranks) {
      const std::uint32_t host = cluster.machines[rank.machine].host;
      if (host != kOwnHost) active[rank.machine] = std::max(per_host[host], 1U);
    }
  };
  if (all_stages) {
    for (const StagePlan& stage : plan.stages) count(stage, 1);
    for (const StagePlan& stage : plan.stages) store(stage);
    return active;
  }
  for (const StagePlan& stage : plan.stages) {
    count(stage, 1);
    store(stage);
    std::fill(per_host.begin(), per_host.end(), 0U);
  }
  return active;
}

StepModel::StepModel(const ModelShape& model, const ClusterShape& cluster)
    : model_(model), cluster_(cluster) {
  class_alone_.reserve(cluster.machines.size());
  for (const Machine& machine : cluster.machines) {
    // Equal neighbours are the rule in large clusters, so the last classes are tried first.
    std::size_t at = classes_.size();
    while (at > 0 && !(classes_[at - 1] == machine.speed)) --at;
    if (at == 0) {
      classes_.push_back(machine.speed);
      at = classes_.size();
    }
    class_alone_.push_back(static_cast<std::uint32_t>(at - 1));
  }
}

std::uint32_t StepModel::class_of(std::uint32_t machine, std::uint32_t n_active) {
  const Machine& m = cluster_.machines[machine];
  if (m.host == kOwnHost || n_active <= 1) return class_alone_[machine];
  const auto key = std::pair(machine, n_active);
  if (const auto found = class_shared_.find(key); found != class_shared_.end()) {
    return found->second;
  }
  const MachineSpeed speed = shared(m.speed, cluster_.hosts[m.host], n_active);
  const auto same = std::find(classes_.begin(), classes_.end(), speed);
  const auto index = static_cast<std::uint32_t>(same - classes_.begin());
  if (same == classes_.end()) classes_.push_back(speed);
  class_shared_.emplace(key, index);
  return index;
}

double StepModel::matrix_seconds(const MachineSpeed& speed, const MatrixShape& matrix,
                                 double touched, double used) const {
  const TypeSpeed type = speed_of(speed, matrix.type);
  const auto n_weights = static_cast<double>(matrix.n_weights);
  const double read = static_cast<double>(matrix.n_bytes) * touched / speed.bytes_per_second;
  const double one_token = n_weights * touched / type.decode_macs_per_second;
  const double one_of_many = n_weights * touched / type.macs_per_second;
  const double products = n_weights * used / type.macs_per_second;
  // Weights come while products with others run, and the waiting for them adds up as the sides of
  // a right angle do: near what is measured from 8 to 256 tokens (docs/planning.md), exact for one,
  // and n times that where nothing is waited for.
  const double more = std::max(products * products - one_of_many * one_of_many, 0.0);
  return std::max(read, std::sqrt(one_token * one_token + more));
}

const StepModel::Table& StepModel::table(std::uint32_t machine_class, std::uint32_t n_rows) {
  const auto key = std::pair(machine_class, n_rows);
  if (const auto found = tables_.find(key); found != tables_.end()) return found->second;
  const MachineSpeed& speed = classes_[machine_class];
  const double n = n_rows;
  // Of a layer's experts, the part that n tokens touch when each chooses at random, and the rows
  // that each expert's weights meet.
  double touched = 1.0;
  double used = n;
  if (model_.n_experts > 0) {
    const double chosen = static_cast<double>(model_.n_experts_used) / model_.n_experts;
    touched = 1.0 - std::pow(1.0 - chosen, n);
    used = n * chosen;
  }
  const double row_floats = n * sizeof(float) / speed.bytes_per_second;
  const double head_rows = kHeadPasses * model_.n_heads * model_.head_dim * row_floats;
  const double ffn_rows = kFfnPasses * model_.ffn_size *
                          (model_.n_experts == 0 ? 1.0 : model_.n_experts_used) * row_floats;
  const double hidden_rows = kHiddenPasses * model_.hidden_size * row_floats;
  const double operators = operators_per_layer(model_) * speed.operator_seconds;

  Table out;
  const std::size_t n_layers = model_.layers.size();
  for (auto* sums : {&out.heads, &out.kv, &out.ffn}) sums->reserve(n_layers + 1);
  double heads = 0.0;
  double kv = 0.0;
  double ffn = 0.0;
  const auto append = [&] {
    out.heads.push_back(heads);
    out.kv.push_back(kv);
    out.ffn.push_back(ffn);
  };
  append();
  for (const LayerShape& layer : model_.layers) {
    for (const MatrixShape& m : layer.heads) heads += matrix_seconds(speed, m, 1.0, n);
    for (const MatrixShape& m : layer.kv) kv += matrix_seconds(speed, m, 1.0, n);
    for (const MatrixShape& m : layer.ffn) ffn += matrix_seconds(speed, m, touched, used);
    heads += head_rows;
    ffn += ffn_rows;
    append();
  }
  out.fixed = operators + hidden_rows;
  for (const MatrixShape& m : model_.layers.front().whole) {
    out.fixed += matrix_seconds(speed, m, 1.0, n);
  }
  out.output = matrix_seconds(speed, model_.output, 1.0, n) +
               kLogitPasses * model_.vocab_size * row_floats + 2 * speed.operator_seconds;
  return tables_.emplace(key, std::move(out)).first->second;
}

double StepModel::attention_seconds(const MachineSpeed& speed, double kv_share, double head_share,
                                    const StepWork& work) const {
  const double context = model_.sliding_window == 0
                             ? work.context
                             : std::min<double>(work.context, model_.sliding_window);
  const double read = work.n_sequences * context * kv_share *
                      static_cast<double>(model_.kv_token_bytes) / speed.bytes_per_second;
  const double products =
      work.n_rows * context * head_share * 2.0 * model_.n_heads * model_.head_dim /
      (work.n_rows > work.n_sequences ? attention_speed(speed) : attention_decode_speed(speed));
  return std::max(read, products);
}

double StepModel::rank_seconds(std::uint32_t machine_class, const StagePlan& stage,
                               const RankShare& share, const StepWork& work) {
  const MachineSpeed& speed = classes_[machine_class];
  const IndexRange layers = stage.layers;
  const double head_share = static_cast<double>(share.heads.size()) / model_.n_heads;
  const double kv_share =
      static_cast<double>(kv_heads_of(model_, share.heads).size()) / model_.n_kv_heads;
  const double ffn_share = static_cast<double>(share.ffn.size()) / model_.ffn_size;
  const bool is_last = layers.end == model_.n_layers();
  // In the model's last layer only the rows that are asked for go beyond their keys and values.
  const bool selects = is_last && work.n_outputs < work.n_rows;
  const std::uint32_t full_end = selects ? layers.end - 1 : layers.end;

  const Table& t = table(machine_class, work.n_rows);
  const auto span = [&](const std::vector<double>& sums, std::uint32_t end) {
    return sums[end] - sums[layers.begin];
  };
  double seconds = head_share * span(t.heads, full_end) + ffn_share * span(t.ffn, full_end) +
                   kv_share * span(t.kv, layers.end) + t.fixed * layers.size() +
                   attention_seconds(speed, kv_share, head_share, work) * (full_end - layers.begin);
  if (is_last && work.n_outputs > 0) {
    const Table& few = table(machine_class, work.n_outputs);
    if (selects) {
      const std::uint32_t l = layers.end - 1;
      StepWork selected = work;
      selected.n_rows = work.n_outputs;
      seconds += head_share * (few.heads[l + 1] - few.heads[l]) +
                 ffn_share * (few.ffn[l + 1] - few.ffn[l]) +
                 attention_seconds(speed, kv_share, head_share, selected);
    }
    seconds += few.output * share.vocab.size() / model_.vocab_size;
  }
  return seconds;
}

double StepModel::whole_layers_seconds(std::uint32_t machine, IndexRange layers,
                                       const StepWork& work, std::uint32_t n_active) {
  const std::uint32_t machine_class = class_of(machine, n_active);
  const Table& t = table(machine_class, work.n_rows);
  return t.heads[layers.end] - t.heads[layers.begin] + t.kv[layers.end] - t.kv[layers.begin] +
         t.ffn[layers.end] - t.ffn[layers.begin] +
         (t.fixed + attention_seconds(classes_[machine_class], 1.0, 1.0, work)) * layers.size();
}

LinkSpec StepModel::worst_link(const StagePlan& a, const StagePlan& b) const {
  // Pairs of groups instead of pairs of machines: equal links are looked at once.
  struct Members {
    std::uint32_t group;
    std::uint32_t machine;  // One of them.
    std::size_t n;
  };
  const auto groups = [this](const StagePlan& stage) {
    std::vector<Members> out;
    for (const RankShare& rank : stage.ranks) {
      const std::uint32_t group = cluster_.machines[rank.machine].group;
      if (out.empty() || out.back().group != group) out.push_back({group, rank.machine, 0});
      ++out.back().n;
    }
    return out;
  };
  LinkSpec worst = {
      .transport = LinkTransport::kSharedMemory, .latency_seconds = 0, .bytes_per_second = 1e30};
  const auto from = groups(a);
  const auto to = groups(b);
  const bool same = &a == &b;
  for (const Members& x : from) {
    for (const Members& y : to) {
      if (same && x.machine == y.machine && x.n == 1) continue;  // Nobody has a link to itself.
      const LinkSpec& link = cluster_.link(x.machine, y.machine);
      worst.latency_seconds = std::max(worst.latency_seconds, link.latency_seconds);
      worst.bytes_per_second = std::min(worst.bytes_per_second, link.bytes_per_second);
      worst.message_seconds = std::max(worst.message_seconds, link.message_seconds);
      worst.transport = std::max(worst.transport, link.transport);
    }
  }
  return worst;
}

// As model/forward.h and collective/calibrate.h have it.
bool StepModel::computes_meanwhile(double rows, double row_bytes, double sum_seconds) {
  return rows >= 2.0 * static_cast<double>(model::kHalfRowsMin) &&
         rows * row_bytes < collective::kFastBytesPerSecond * sum_seconds;
}

double StepModel::exchange_seconds(const StagePlan& stage, const StepWork& work,
                                   double compute) const {
  const std::size_t n = stage.ranks.size();
  if (n <= 1) return 0.0;
  const LinkSpec link = worst_link(stage, stage);
  const auto row_bytes =
      static_cast<double>(collective::wire_bytes(cluster_.sums, model_.hidden_size));
  const auto reduce = [&](double rows) { return all_reduce_seconds(rows * row_bytes, n, link); };
  const bool is_first = stage.layers.begin == 0;
  const bool is_last = stage.layers.end == model_.n_layers();
  double n_full = 2.0 * stage.layers.size();
  double seconds = is_first ? reduce(work.n_rows) : 0.0;
  if (is_last && work.n_outputs < work.n_rows) {
    n_full -= 2.0;
    if (work.n_outputs > 0) seconds += 2.0 * reduce(work.n_outputs);
  }
  double full = n_full * reduce(work.n_rows);
  if (computes_meanwhile(work.n_rows, row_bytes, reduce(work.n_rows))) {
    full = n_full * 2.0 * reduce(work.n_rows / 2.0);
    full -= kHiddenShare * std::min(full, compute);
  }
  seconds += full;
  if (is_last && work.n_outputs > 0) {
    // The first rank gathers the logits.
    seconds += link.latency_seconds + static_cast<double>(sizeof(float)) * work.n_outputs *
                                          model_.vocab_size * (static_cast<double>(n) - 1.0) /
                                          static_cast<double>(n) / link.bytes_per_second;
  }
  return seconds;
}

StageSeconds StepModel::stage(const StagePlan& stage, const StepWork& work,
                              std::span<const std::uint32_t> active) {
  StageSeconds out;
  out.ranks.reserve(stage.ranks.size());
  const RankShare* before = nullptr;
  std::uint32_t class_before = 0;
  for (const RankShare& share : stage.ranks) {
    const std::uint32_t n_active = active.empty() ? 1 : active[share.machine];
    const std::uint32_t machine_class = class_of(share.machine, n_active);
    // Neighbours are mostly alike.
    const bool same =
        before != nullptr && machine_class == class_before &&
        share.heads.size() == before->heads.size() &&
        kv_heads_of(model_, share.heads).size() == kv_heads_of(model_, before->heads).size() &&
        share.ffn.size() == before->ffn.size() && share.vocab.size() == before->vocab.size();
    const double seconds =
        same ? out.ranks.back() : rank_seconds(machine_class, stage, share, work);
    before = &share;
    class_before = machine_class;
    out.ranks.push_back(seconds);
    out.compute = std::max(out.compute, seconds);
  }
  out.exchange = exchange_seconds(stage, work, out.compute);
  return out;
}

HopSeconds StepModel::hop(const StagePlan& from, const StagePlan& to, std::uint32_t n_rows) const {
  const LinkSpec link = worst_link(from, to);
  const double bytes = static_cast<double>(sizeof(float)) * model_.hidden_size * n_rows;
  // Every rank of a stage has all rows at the end; they serve the next stage's ranks in turn.
  const std::size_t each = (to.ranks.size() + from.ranks.size() - 1) / from.ranks.size();
  return {
      .busy = static_cast<double>(each) * (bytes / link.bytes_per_second + link.message_seconds),
      .flight = link.latency_seconds,
      .overlaps = link.overlaps()};
}

double StepModel::coordinator_seconds(const StagePlan& stage) const {
  double seconds = 0.0;
  for (const RankShare& rank : stage.ranks) {
    seconds = std::max(seconds, cluster_.coordinator_link(rank.machine).latency_seconds);
  }
  return seconds;
}

}  // namespace recua::cluster
