#include "cluster/predict.h"

#include <algorithm>
#include <array>

#include "base/check.h"

namespace recua::cluster {
namespace {

// The engine's own work between a result and the next step: choosing what runs next, text.
constexpr double kCoordinatorSeconds = 10e-6;

// Micro-batches that are tried. Smaller ones fill the stages sooner, larger ones reuse weights.
constexpr std::array<std::uint32_t, 5> kMicroBatches = {32, 64, 128, 256, 512};

// Tokens per stream when throughput is measured; the first ones fill the stages.
constexpr std::uint32_t kRounds = 6;
constexpr std::uint32_t kRoundsSkipped = 3;

TripKind trip_kind(StepModel& model, const SplitPlan& plan, const StepWork& work,
                   std::span<const std::uint32_t> active) {
  TripKind kind;
  kind.stages.reserve(plan.stages.size());
  for (const StagePlan& stage : plan.stages) {
    kind.stages.push_back(model.stage(stage, work, active));
  }
  for (std::size_t s = 0; s + 1 < plan.stages.size(); ++s) {
    kind.hops.push_back(model.hop(plan.stages[s], plan.stages[s + 1], work.n_rows));
  }
  kind.to_first_seconds = model.coordinator_seconds(plan.stages.front());
  kind.to_last_seconds = model.coordinator_seconds(plan.stages.back());
  return kind;
}

/// Tokens per second once the stages are full.
double steady_rate(const ScheduleInput& input, std::uint32_t n_streams) {
  const Schedule schedule = run_schedule(input, Record::kResultsOnly);
  double skipped = 0.0;
  for (const auto& chain : schedule.results_at) {
    skipped = std::max(skipped, chain[kRoundsSkipped - 1]);
  }
  const double n_tokens = static_cast<double>(n_streams) * (kRounds - kRoundsSkipped);
  return n_tokens / (schedule.end - skipped);
}

}  // namespace

ScheduleInput prefill_schedule(StepModel& model, const SplitPlan& plan, std::uint32_t n_prompt,
                               std::uint32_t n_ubatch) {
  ScheduleInput input;
  input.n_stages = plan.stages.size();
  input.coordinator_seconds = kCoordinatorSeconds;
  const bool overlapped = plan.stages.size() > 1 && n_prompt > n_ubatch;
  const std::vector<std::uint32_t> active = active_per_host(model.cluster(), plan, overlapped);
  for (std::uint32_t begin = 0; begin < n_prompt; begin += n_ubatch) {
    const std::uint32_t n_rows = std::min(n_ubatch, n_prompt - begin);
    const StepWork work = {.n_rows = n_rows,
                           .context = begin + (n_rows + 1) / 2.0,
                           .n_sequences = 1,
                           .n_outputs = begin + n_rows == n_prompt ? 1U : 0U};
    input.chains.push_back({static_cast<std::uint32_t>(input.kinds.size())});
    input.kinds.push_back(trip_kind(model, plan, work, active));
  }
  return input;
}

ScheduleInput decode_schedule(StepModel& model, const SplitPlan& plan, std::uint32_t n_streams,
                              std::uint32_t n_in_flight, double context, std::uint32_t n_rounds) {
  RECUA_CHECK(n_in_flight >= 1 && n_in_flight <= n_streams);
  ScheduleInput input;
  input.n_stages = plan.stages.size();
  input.coordinator_seconds = kCoordinatorSeconds;
  const std::vector<std::uint32_t> active =
      active_per_host(model.cluster(), plan, n_in_flight > 1 && plan.stages.size() > 1);
  // Groups differ by at most one stream.
  const std::uint32_t least = n_streams / n_in_flight;
  const std::uint32_t n_larger = n_streams % n_in_flight;
  const auto kind_of_size = [&](std::uint32_t n) {
    const StepWork work = {.n_rows = n, .context = context, .n_sequences = n, .n_outputs = n};
    return trip_kind(model, plan, work, active);
  };
  input.kinds.push_back(kind_of_size(least));
  if (n_larger > 0) input.kinds.push_back(kind_of_size(least + 1));
  for (std::uint32_t g = 0; g < n_in_flight; ++g) {
    input.chains.emplace_back(n_rounds, g < n_larger ? 1U : 0U);
  }
  return input;
}

namespace {

/// What a trip takes when nothing is in its way, and how soon the next can follow it.
struct TripSeconds {
  double alone = 0.0;
  double interval = 0.0;
};

TripSeconds trip_seconds(const TripKind& kind) {
  TripSeconds out;
  out.alone = kind.to_first_seconds + kind.to_last_seconds;
  for (std::size_t s = 0; s < kind.stages.size(); ++s) {
    const double own = kind.stages[s].total();
    const HopSeconds hop = s < kind.hops.size() ? kind.hops[s] : HopSeconds{};
    out.alone += own + hop.busy + hop.flight;
    out.interval = std::max(out.interval, hop.overlaps ? std::max(own, hop.busy) : own + hop.busy);
  }
  return out;
}

/// Tokens per second of n_streams in n_in_flight groups.
double rate_estimate(StepModel& model, const SplitPlan& plan, std::uint32_t n_streams,
                     std::uint32_t n_in_flight, double context) {
  const ScheduleInput input = decode_schedule(model, plan, n_streams, n_in_flight, context, 1);
  const TripSeconds trip = trip_seconds(input.kinds.back());
  return n_streams / std::max(trip.alone + kCoordinatorSeconds, n_in_flight * trip.interval);
}

double decode_context(const Workload& workload) {
  return workload.n_prompt + workload.n_generate / 2.0;
}

/// All streams in one batch, or one group per stage: which is better depends on whether a batch
/// costs more than a token. rate(n_in_flight) gives tokens per second.
template <class Rate>
void choose_in_flight(const SplitPlan& plan, const Workload& workload, Prediction& out,
                      Rate&& rate) {
  out.tokens_per_second_streams = out.tokens_per_second;
  if (workload.n_streams > 1) {
    const auto n_stages = static_cast<std::uint32_t>(plan.stages.size());
    out.tokens_per_second_streams = rate(1U);
    const std::uint32_t n_in_flight = std::min(workload.n_streams, n_stages);
    if (n_in_flight > 1) {
      const double overlapped = rate(n_in_flight);
      if (overlapped > out.tokens_per_second_streams) {
        out.tokens_per_second_streams = overlapped;
        out.n_in_flight = n_in_flight;
      }
    }
  }
  out.answer_seconds = out.first_token_seconds + static_cast<double>(workload.n_generate) *
                                                     workload.n_streams /
                                                     out.tokens_per_second_streams;
}

}  // namespace

Prediction estimate(StepModel& model, const SplitPlan& plan, const Workload& workload) {
  Prediction out;
  const double mean_context = (workload.n_prompt + 1) / 2.0;
  const std::uint32_t fixed = std::max(plan.n_ubatch, workload.n_prompt / kMicroBatchesMax);
  const std::span<const std::uint32_t> sizes =
      plan.n_ubatch == 0 ? std::span(kMicroBatches) : std::span(&fixed, 1);
  for (const std::uint32_t size : sizes) {
    const std::uint32_t n_ubatch = std::min({size, workload.n_ubatch_max, workload.n_prompt});
    const bool is_largest = n_ubatch == std::min(workload.n_ubatch_max, workload.n_prompt);
    const bool too_many =
        workload.n_prompt / n_ubatch > kMicroBatchesMax && !is_largest && size != sizes.back();
    if (n_ubatch == out.n_ubatch || too_many) continue;
    const bool overlapped = plan.stages.size() > 1 && workload.n_prompt > n_ubatch;
    const std::vector<std::uint32_t> active = active_per_host(model.cluster(), plan, overlapped);
    const StepWork work = {
        .n_rows = n_ubatch, .context = mean_context, .n_sequences = 1, .n_outputs = 1};
    const TripSeconds trip = trip_seconds(trip_kind(model, plan, work, active));
    const double n_more = static_cast<double>(workload.n_prompt) / n_ubatch - 1.0;
    const double seconds = trip.alone + n_more * trip.interval;
    // Of equal times the larger one: fewer messages.
    if (out.n_ubatch == 0 || seconds <= out.first_token_seconds) {
      out.first_token_seconds = seconds;
      out.n_ubatch = n_ubatch;
    }
  }
  const double context = decode_context(workload);
  out.tokens_per_second = rate_estimate(model, plan, 1, 1, context);
  choose_in_flight(plan, workload, out, [&](std::uint32_t n_in_flight) {
    return rate_estimate(model, plan, workload.n_streams, n_in_flight, context);
  });
  return out;
}

Prediction predict(StepModel& model, const SplitPlan& plan, const Workload& workload) {
  Prediction out = estimate(model, plan, workload);
  out.n_in_flight = 1;
  out.first_token_seconds =
      run_schedule(prefill_schedule(model, plan, workload.n_prompt, out.n_ubatch),
                   Record::kResultsOnly)
          .end;
  const double context = decode_context(workload);
  const ScheduleInput one = decode_schedule(model, plan, 1, 1, context, kRounds);
  const TripKind& token = one.kinds.front();
  for (const StageSeconds& stage : token.stages) {
    out.decode_compute_seconds += stage.compute;
    out.decode_exchange_seconds += stage.exchange;
  }
  for (const HopSeconds& hop : token.hops) out.decode_link_seconds += hop.busy + hop.flight;
  out.decode_link_seconds += token.to_first_seconds + token.to_last_seconds;
  out.tokens_per_second = steady_rate(one, 1);
  choose_in_flight(plan, workload, out, [&](std::uint32_t n_in_flight) {
    return steady_rate(
        decode_schedule(model, plan, workload.n_streams, n_in_flight, context, kRounds),
        workload.n_streams);
  });
  return out;
}

}  // namespace recua::cluster
