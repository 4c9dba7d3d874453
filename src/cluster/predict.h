#pragma once
/// What a plan will do for a workload: the time to the first token and tokens per second, from the
/// step model and the schedule.

#include <cstdint>

#include "cluster/split_plan.h"
#include "cluster/step_model.h"
#include "cluster/step_schedule.h"

namespace recua::cluster {

/// Micro-batches of a prompt: more are not worth their schedule. A caller with a longer prompt
/// allows larger ones.
inline constexpr std::uint32_t kMicroBatchesMax = 4096;

struct Workload {
  std::uint32_t n_prompt = 512;      // Tokens of a prompt, at least 1.
  std::uint32_t n_generate = 128;    // Tokens of an answer, at least 1.
  std::uint32_t n_streams = 1;       // Answers that are written at the same time.
  std::uint32_t n_ubatch_max = 512;  // Most tokens of a micro-batch.
};

struct Prediction {
  double first_token_seconds = 0.0;        // Of one prompt, nothing else going on.
  double tokens_per_second = 0.0;          // Decode of one stream.
  double tokens_per_second_streams = 0.0;  // Decode of n_streams, together.
  /// From the prompt to the end of the answer with n_streams going on: what plans are compared by.
  double answer_seconds = 0.0;

  std::uint32_t n_ubatch = 0;            // Micro-batch that fills the stages best.
  std::uint32_t n_in_flight = 1;         // Groups of streams on their way at the same time.
  double decode_compute_seconds = 0.0;   // Of one token through all stages,
  double decode_exchange_seconds = 0.0;  // partial sums among ranks,
  double decode_link_seconds = 0.0;      // and from stage to stage, to and from the coordinator.
};

/// In closed form, for ranking many plans: the sum over the stages and, for each further
/// micro-batch or group of streams, the slowest stage. Exact when micro-batches cost the same.
/// plan has passed check_plan().
Prediction estimate(StepModel& model, const SplitPlan& plan, const Workload& workload);

/// By running the schedules, with the micro-batch that estimate() found best.
Prediction predict(StepModel& model, const SplitPlan& plan, const Workload& workload);

/// The schedules behind a prediction, for timelines. Times start at 0 each.
ScheduleInput prefill_schedule(StepModel& model, const SplitPlan& plan, std::uint32_t n_prompt,
                               std::uint32_t n_ubatch);
/// n_in_flight groups of streams (at most n_streams), n_rounds tokens each.
ScheduleInput decode_schedule(StepModel& model, const SplitPlan& plan, std::uint32_t n_streams,
                              std::uint32_t n_in_flight, double context, std::uint32_t n_rounds);

}  // namespace recua::cluster
