#include "cli/bench_limits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include <fmt/format.h>

namespace recua::cli {
namespace {

using sys::MultiplyAdd;

// Two caches of 32 MiB (a thread each) held enough of 128 MiB to make memory look twice as fast.
constexpr std::size_t kStreamBytes = std::size_t{256} << 20U;
constexpr std::chrono::duration<double> kReadTime{0.06};
constexpr std::chrono::duration<double> kSumTime{0.008};

/// Work in seconds: reading and summing may overlap, so a step takes the larger sum.
struct StepCost {
  double read = 0.0;
  double sum = 0.0;
};

double peak_of(const cluster::MachineSpeed& limits, quant::DataType type) {
  for (const cluster::TypeSpeed& known : limits.by_type) {
    if (known.type == type) return known.macs_per_second;
  }
  return 0.0;
}

/// touched: the part of the weights that is read; used: how often each weight is multiplied.
void add_matrix(const cluster::MachineSpeed& limits, const cluster::MatrixShape& matrix,
                double touched, double used, StepCost& cost) {
  cost.read += static_cast<double>(matrix.n_bytes) * touched / limits.bytes_per_second;
  const double peak = peak_of(limits, matrix.type);
  if (peak > 0.0) cost.sum += static_cast<double>(matrix.n_weights) * used / peak;
}

/// One step of n_rows rows that see `context` tokens each on average, of n_sequences sequences.
double step_seconds(const cluster::ModelShape& model, const cluster::MachineSpeed& limits,
                    double n_rows, double context, double n_sequences, double n_outputs) {
  StepCost cost;
  double touched = 1.0;
  double used = n_rows;
  if (model.n_experts > 0) {  // Each token chooses at random, as far as we know.
    const double chosen = static_cast<double>(model.n_experts_used) / model.n_experts;
    touched = 1.0 - std::pow(1.0 - chosen, n_rows);
    used = n_rows * chosen;
  }
  for (const cluster::LayerShape& layer : model.layers) {
    for (const auto* part : {&layer.heads, &layer.kv, &layer.whole}) {
      for (const cluster::MatrixShape& m : *part) add_matrix(limits, m, 1.0, n_rows, cost);
    }
    for (const cluster::MatrixShape& m : layer.ffn) add_matrix(limits, m, touched, used, cost);
  }
  if (n_outputs > 0.0) add_matrix(limits, model.output, 1.0, n_outputs, cost);
  if (model.sliding_window != 0) context = std::min<double>(context, model.sliding_window);
  const double n_layers = model.n_layers();
  cost.read += n_sequences * context * n_layers * static_cast<double>(model.kv_token_bytes) /
               limits.bytes_per_second;
  if (limits.attention_macs_per_second > 0.0) {
    cost.sum += n_rows * context * n_layers * 2.0 * model.n_heads * model.head_dim /
                limits.attention_macs_per_second;
  }
  return std::max(cost.read, cost.sum);
}

double prefill_seconds(const cluster::ModelShape& model, const cluster::MachineSpeed& limits,
                       const BenchTest& test, std::uint32_t n_ubatch) {
  double seconds = 0.0;
  for (std::uint32_t done = 0; done < test.n_prompt; done += n_ubatch) {
    const std::uint32_t n = std::min(n_ubatch, test.n_prompt - done);
    const bool is_last = done + n == test.n_prompt;
    seconds += step_seconds(model, limits, n, test.n_depth + done + n / 2.0, 1.0, is_last ? 1 : 0);
  }
  return seconds * test.n_parallel;
}

double generate_seconds(const cluster::ModelShape& model, const cluster::MachineSpeed& limits,
                        const BenchTest& test) {
  const double context = test.n_depth + test.n_prompt + (test.n_gen + 1.0) / 2.0;
  const double together = test.apart ? 1.0 : test.n_parallel;
  const double steps = test.n_gen * (test.n_parallel / together);
  return steps * step_seconds(model, limits, together, context, together, together);
}

}  // namespace

std::optional<MultiplyAdd> multiply_add_of(sys::InstructionSet set, quant::DataType type) {
  const bool wide = set == sys::InstructionSet::kAvx512;
  if (!wide && set != sys::InstructionSet::kAvx2) return std::nullopt;
  switch (type) {  // How many products fit 16 bits: docs/performance.md.
    case quant::DataType::kF32:
    case quant::DataType::kF16:
    case quant::DataType::kBF16:
      return wide ? MultiplyAdd::kFma512 : MultiplyAdd::kFma256;
    case quant::DataType::kQ4_0:
    case quant::DataType::kQ4_K:
      return wide ? MultiplyAdd::kDotBytes512 : MultiplyAdd::kBytesBy8;
    case quant::DataType::kQ6_K:
      return wide ? MultiplyAdd::kDotBytes512 : MultiplyAdd::kBytesBy4;
    case quant::DataType::kQ8_0:
      return wide ? MultiplyAdd::kDotBytes512 : MultiplyAdd::kWords256;
    case quant::DataType::kIQ4_NL:
    case quant::DataType::kIQ4_XS:
      return MultiplyAdd::kWords256;
    case quant::DataType::kQ2_K:
    case quant::DataType::kQ3_K:
    case quant::DataType::kQ5_K:
      return MultiplyAdd::kBytesBy4;
    default:
      return MultiplyAdd::kBytesBy8;
  }
}

BenchLimit limit_of(const cluster::ModelShape& model, const cluster::MachineSpeed& limits,
                    const BenchTest& test, std::uint32_t n_ubatch) {
  const auto seconds_with = [&](const cluster::MachineSpeed& speed) {
    return prefill_seconds(model, speed, test, n_ubatch) + generate_seconds(model, speed, test);
  };
  const double seconds = seconds_with(limits);
  cluster::MachineSpeed endless = limits;  // What would be left if memory were no limit.
  endless.bytes_per_second *= 1e6;
  const double n_tokens = (static_cast<double>(test.n_prompt) + test.n_gen) * test.n_parallel;
  return {.tokens_per_second = n_tokens / seconds,
          .by_memory = seconds_with(endless) < 0.5 * seconds,
          .bytes_per_second = limits.bytes_per_second};
}

Result<LimitProbe> LimitProbe::create(const cluster::ModelShape& model, std::size_t n_threads) {
  RECUA_ASSIGN_OR_RETURN(const sys::InstructionSet set, sys::choose_instruction_set("auto"));
  std::set<quant::DataType> types = {model.output.type};
  for (const cluster::LayerShape& layer : model.layers) {
    for (const auto* part : {&layer.heads, &layer.kv, &layer.ffn, &layer.whole}) {
      for (const cluster::MatrixShape& matrix : *part) types.insert(matrix.type);
    }
  }
  LimitProbe probe;
  const auto needed = [](std::optional<MultiplyAdd> sequence) {
    return sequence && sys::supported(*sequence);
  };
  for (const quant::DataType type : types) {
    const auto sequence = multiply_add_of(set, type);
    if (!needed(sequence)) {
      return Error{ErrorCode::kUnsupported,
                   fmt::format("the limits of {} kernels are not known: rows will have none",
                               sys::to_string(set))};
    }
    probe.types_.push_back({.type = type, .sequence = *sequence});
  }
  probe.attention_ = *multiply_add_of(set, quant::DataType::kF32);
  RECUA_ASSIGN_OR_RETURN(probe.memory_, sys::AlignedBuffer::allocate(kStreamBytes));
  probe.pool_ = std::make_unique<sys::ThreadPool>(n_threads);
  probe.pool_->run([&](std::size_t thread, std::size_t n) {
    const sys::Partition part = sys::partition(probe.memory_.size(), thread, n, 64);
    std::memset(probe.memory_.data() + part.begin, 1, part.size());
  });
  return probe;
}

cluster::MachineSpeed LimitProbe::measure() {
  cluster::MachineSpeed out;
  out.bytes_per_second = sys::read_bytes_per_second(memory_.bytes(), *pool_, kReadTime);
  for (const TypePeak& peak : types_) {
    out.by_type.push_back(
        {.type = peak.type,
         .macs_per_second = sys::multiply_adds_per_second(peak.sequence, *pool_, kSumTime)});
  }
  out.attention_macs_per_second = sys::multiply_adds_per_second(attention_, *pool_, kSumTime);
  return out;
}

cluster::MachineSpeed limits_between(cluster::MachineSpeed before,
                                     const cluster::MachineSpeed& after) {
  const auto raise = [](double& to, double other) { to = std::max(to, other); };
  before.bytes_per_second = (before.bytes_per_second + after.bytes_per_second) / 2;
  raise(before.attention_macs_per_second, after.attention_macs_per_second);
  for (std::size_t i = 0; i < std::min(before.by_type.size(), after.by_type.size()); ++i) {
    raise(before.by_type[i].macs_per_second, after.by_type[i].macs_per_second);
  }
  return before;
}

}  // namespace recua::cli
