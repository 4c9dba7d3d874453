// recua plan: how fast each way of spreading a model over machines will be, before anything is
// loaded.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "cli/plan_inputs.h"
#include "cli/plan_report.h"
#include "cluster/cluster_file.h"
#include "cluster/json_fields.h"
#include "cluster/plan_file.h"
#include "cluster/timeline_svg.h"

namespace recua::cli {
namespace {

constexpr std::uint32_t kDefaultCtxMax = 4096;
constexpr std::uint32_t kPromptMax = 1 << 20;
constexpr std::uint32_t kStreamsMax = 4096;
constexpr std::uint32_t kPageTokens = 32;
constexpr std::size_t kScaleRowsMax = 64;

// Tokens per stream on a timeline, and groups of streams: enough to see the pattern.
constexpr std::uint32_t kTimelineRounds = 3;

struct PlanFlags {
  ModelFlags model;
  ClusterFlags cluster;
  LinkFlags links;
  std::string simulate;
  std::string plan_file;
  std::string save_file;
  std::string svg_file;
  std::string scale_text;
  std::uint32_t n_stages = 0;  // 0: choose.
  std::uint32_t n_ranks = 0;   // 0: choose.
  std::uint32_t n_prompt = 512;
  std::uint32_t n_generate = 128;
  bool lengths_given = false;  // Either of the two.
  std::uint32_t n_streams = 1;
  bool use_all = false;
  bool remeasure = false;
  bool json = false;
};

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

Result<void> check_count(const char* flag, std::uint32_t value, std::uint32_t most) {
  if (value >= 1 && value <= most) return ok();
  return invalid(fmt::format("{} is {}, need a whole number from 1 to {}", flag, value, most));
}

/// --split needs workers elsewhere; here it may also speak of described machines.
Result<std::vector<double>> take_split(PlanFlags& flags) {
  std::vector<double> out;
  if (flags.cluster.split_text.empty()) return out;
  RECUA_ASSIGN_OR_RETURN(const auto counts,
                         parse_counts("--split", flags.cluster.split_text, 100000));
  out.assign(counts.begin(), counts.end());
  flags.cluster.split_text.clear();
  return out;
}

Result<void> check(PlanFlags& flags) {
  if (flags.model.model.empty()) {
    return missing("-m/--model", "the GGUF file, or the description of a model (.json)");
  }
  RECUA_RETURN_IF_ERROR(flags.model.check());
  RECUA_RETURN_IF_ERROR(flags.links.check());
  RECUA_RETURN_IF_ERROR(check_count("--prompt", flags.n_prompt, kPromptMax));
  RECUA_RETURN_IF_ERROR(check_count("--generate", flags.n_generate, kPromptMax));
  RECUA_RETURN_IF_ERROR(check_count("--streams", flags.n_streams, kStreamsMax));
  const std::uint32_t n_ubatch = std::min({flags.model.n_ubatch, flags.model.n_batch, 512U});
  if (flags.n_prompt / n_ubatch > cluster::kMicroBatchesMax) {
    return invalid(
        fmt::format("--prompt {} makes more than {} micro-batches of {}: use a larger -ub",
                    flags.n_prompt, cluster::kMicroBatchesMax, n_ubatch));
  }
  if (!flags.simulate.empty() && !flags.cluster.workers_text.empty()) {
    return invalid("--workers and --simulate exclude each other: name one of them");
  }
  if (flags.cluster.n_local_workers > 0) {
    return invalid("--local-workers are not planned for: start them, and name them by --workers");
  }
  const bool overrides =
      flags.n_stages > 0 || flags.n_ranks > 0 || flags.use_all || !flags.cluster.split_text.empty();
  if (!flags.plan_file.empty() && overrides) {
    return invalid("--plan gives the whole plan: leave --tp, --pp, --split and --use-all away");
  }
  if (!flags.scale_text.empty() &&
      (!flags.plan_file.empty() || !flags.save_file.empty() || !flags.svg_file.empty())) {
    return invalid("--scale makes many plans: leave --plan, --save and --svg away");
  }
  return ok();
}

cluster::SearchOptions search_options(const PlanFlags& flags, std::uint32_t n_ctx) {
  cluster::SearchOptions options;
  options.workload = {.n_prompt = flags.n_prompt,
                      .n_generate = flags.n_generate,
                      .n_streams = flags.n_streams,
                      .n_ubatch_max = std::min(flags.model.n_ubatch, flags.model.n_batch)};
  const std::uint64_t pages_each = (std::uint64_t{n_ctx} + kPageTokens - 1) / kPageTokens;
  options.memory = {.n_cache_tokens = pages_each * kPageTokens * flags.n_streams,
                    .n_ubatch = options.workload.n_ubatch_max};
  if (flags.n_stages > 0) options.n_stages = flags.n_stages;
  if (flags.n_ranks > 0) options.n_ranks = flags.n_ranks;
  options.use_all = flags.use_all;
  return options;
}

/// A small model has no room for the usual lengths: then a prompt and an answer in their
/// proportion.
void shorten(PlanFlags& flags, const cluster::ModelShape& model) {
  const std::uint32_t own = model.n_ctx_train;
  if (flags.lengths_given || own < 2 || flags.n_prompt + flags.n_generate <= own) return;
  flags.n_generate = std::max(own / 5, 1U);
  flags.n_prompt = own - flags.n_generate;
}

/// -c as other commands take it: 0 means the model's own, nothing that or 4096 if that is less.
Result<std::uint32_t> choose_ctx(const PlanFlags& flags, const cluster::ModelShape& model) {
  const std::uint32_t own = model.n_ctx_train == 0 ? kDefaultCtxMax : model.n_ctx_train;
  std::uint32_t n_ctx = std::min(own, kDefaultCtxMax);
  if (flags.model.ctx_given) n_ctx = flags.model.n_ctx == 0 ? own : flags.model.n_ctx;
  const std::uint64_t n_needed = std::uint64_t{flags.n_prompt} + flags.n_generate;
  if (n_needed <= n_ctx) return n_ctx;
  if (!flags.model.ctx_given && n_needed <= own) return static_cast<std::uint32_t>(n_needed);
  return invalid(fmt::format(
      "--prompt {} and --generate {} do not fit into a context of {} tokens: use a larger -c",
      flags.n_prompt, flags.n_generate, n_ctx));
}

Result<std::string> timelines(const PlanReport& report) {
  const cluster::RankedPlan& best = report.choice.plans.front();
  const cluster::Workload& w = report.options.workload;
  cluster::StepModel step(*report.model, *report.machines);
  std::vector<cluster::Timeline> pictures;
  const auto add = [&](const cluster::ScheduleInput& input, std::string title, const char* chain) {
    const cluster::Schedule schedule = run_schedule(input, cluster::Record::kVisits);
    cluster::Timeline timeline = timeline_of(input, schedule, best.plan, *report.machines);
    timeline.title = std::move(title);
    timeline.chain_name = chain;
    pictures.push_back(std::move(timeline));
  };
  add(prefill_schedule(step, best.plan, w.n_prompt, best.prediction.n_ubatch),
      fmt::format("A prompt of {} tokens in micro-batches of {}: {} to the first token", w.n_prompt,
                  best.prediction.n_ubatch, seconds_text(best.prediction.first_token_seconds)),
      "micro-batch");
  add(decode_schedule(step, best.plan, w.n_streams, best.prediction.n_in_flight,
                      w.n_prompt + w.n_generate / 2.0, kTimelineRounds),
      fmt::format("Decode, {} tokens each of {} stream{} in {} group{}: {} tokens/s when full",
                  kTimelineRounds, w.n_streams, w.n_streams == 1 ? "" : "s",
                  best.prediction.n_in_flight, best.prediction.n_in_flight == 1 ? "" : "s",
                  rate_text(best.prediction.tokens_per_second_streams)),
      "group of streams");
  const std::string name = report.model->name.substr(report.model->name.rfind('/') + 1);
  return timeline_svg(pictures, fmt::format("{}: {} on {} machines", name, kind_of(best.plan),
                                            best.plan.n_machines()));
}

Result<void> write_text(const char* flag, const std::string& path, const std::string& text) {
  auto written = write_file_atomically(path, as_bytes(text));
  if (!written.ok()) return std::move(written).error().within(flag);
  return ok();
}

Result<cluster::PlanChoice> choose(const PlanFlags& flags, const PlanReport& report) {
  if (flags.plan_file.empty()) {
    return choose_plan(*report.model, *report.machines, report.options);
  }
  RECUA_ASSIGN_OR_RETURN(const std::string text,
                         read_file(flags.plan_file, cluster::kJsonBytesMax));
  RECUA_ASSIGN_OR_RETURN(
      cluster::SplitPlan plan,
      cluster::parse_plan(text, flags.plan_file, *report.model, *report.machines));
  return judge_plan(*report.model, *report.machines, report.options, std::move(plan));
}

Result<std::string> scaled(const PlanFlags& flags, const PlanReport& report) {
  const auto n_machines = static_cast<std::uint32_t>(report.machines->machines.size());
  RECUA_ASSIGN_OR_RETURN(const std::vector<std::uint32_t> counts,
                         parse_counts("--scale", flags.scale_text, n_machines));
  if (counts.size() > kScaleRowsMax) {
    return invalid(
        fmt::format("--scale has {} numbers, need at most {}", counts.size(), kScaleRowsMax));
  }
  std::vector<ScaleRow> rows;
  for (const std::uint32_t n : counts) {
    if (n == 0) return invalid("--scale: 0 machines run nothing, need numbers from 1");
    const auto choice =
        choose_plan(*report.model, cluster::first_machines(*report.machines, n), report.options);
    if (!choice.ok() && choice.error().code != ErrorCode::kResourceExhausted) {
      return Error(choice.error());
    }
    ScaleRow row = {.n_machines = n, .fits = choice.ok()};
    if (choice.ok()) row.best = choice->plans.front();
    rows.push_back(std::move(row));
  }
  return flags.json ? scale_json(report, rows) : scale_text(report, rows);
}

Result<std::string> plan(PlanFlags& flags) {
  RECUA_RETURN_IF_ERROR(check(flags));
  RECUA_ASSIGN_OR_RETURN(const std::vector<double> split, take_split(flags));
  RECUA_RETURN_IF_ERROR(flags.cluster.check());
  RECUA_ASSIGN_OR_RETURN(const quant::DataType k_type,
                         parse_cache_type("-ctk", flags.model.k_type));
  RECUA_ASSIGN_OR_RETURN(const quant::DataType v_type,
                         parse_cache_type("-ctv", flags.model.v_type));
  RECUA_ASSIGN_OR_RETURN(const PlannedModel planned,
                         read_planned_model(flags.model.model, k_type, v_type));
  const cluster::ModelShape& model = planned.shape;
  shorten(flags, model);
  RECUA_ASSIGN_OR_RETURN(const std::uint32_t n_ctx, choose_ctx(flags, model));
  RECUA_ASSIGN_OR_RETURN(
      PlanMachines machines,
      flags.simulate.empty()
          ? measured_machines(planned, flags.cluster, flags.links, flags.model.n_threads,
                              flags.remeasure ? Measure::kAlways : Measure::kOnce)
          : described_machines(flags.simulate, flags.links));
  machines.shape.sums = flags.cluster.sums;
  PlanReport report;
  report.model = &model;
  report.machines = &machines.shape;
  report.options = search_options(flags, n_ctx);
  report.options.split = split;
  report.options.equal_ranks = flags.simulate.empty();  // What is there should also run.
  report.n_ctx = n_ctx;
  report.notes = machines.notes;
  if (!flags.scale_text.empty()) return scaled(flags, report);
  RECUA_ASSIGN_OR_RETURN(report.choice, choose(flags, report));
  if (!flags.save_file.empty()) {
    cluster::SplitPlan best = report.choice.plans.front().plan;
    best.n_ubatch = report.choice.plans.front().prediction.n_ubatch;
    RECUA_RETURN_IF_ERROR(
        write_text("--save", flags.save_file, cluster::plan_json(model, machines.shape, best)));
  }
  if (!flags.svg_file.empty()) {
    RECUA_ASSIGN_OR_RETURN(const std::string svg, timelines(report));
    RECUA_RETURN_IF_ERROR(write_text("--svg", flags.svg_file, svg));
  }
  return flags.json ? plan_report_json(report) : plan_text(report);
}

int run_plan(PlanFlags& flags) {
  const Result<std::string> text = plan(flags);
  if (!text.ok()) return report(text.error());
  const auto written = write_output(*text);
  return written.ok() ? kExitOk : report(written.error());
}

}  // namespace

void register_plan(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand(
      "plan", "Predict how fast a model will be on machines, and how to spread it");
  const auto flags = std::make_shared<PlanFlags>();
  flags->model.add(*sub);
  flags->cluster.add(*sub, /*with_plan=*/false);
  flags->links.add(*sub);
  sub->add_option("--simulate", flags->simulate, "Plan for the machines that this file describes")
      ->type_name("FILE");
  sub->add_option("--pp", flags->n_stages, "Exactly so many stages of layers")->type_name("N");
  sub->add_option("--tp", flags->n_ranks, "Exactly so many machines share each layer")
      ->type_name("N");
  sub->add_flag("--use-all", flags->use_all, "Leave no machine out, even if that is faster");
  const auto* const prompt =
      sub->add_option("--prompt", flags->n_prompt, "Tokens of a prompt, if the model takes so many")
          ->capture_default_str()
          ->type_name("N");
  const auto* const generate =
      sub->add_option("--generate", flags->n_generate, "Tokens of an answer")
          ->capture_default_str()
          ->type_name("N");
  sub->add_option("--streams", flags->n_streams, "Answers that are written at the same time")
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("--plan", flags->plan_file, "Judge the plan in this file instead of choosing")
      ->type_name("FILE");
  sub->add_option("--save", flags->save_file, "Write the plan to this file")->type_name("FILE");
  sub->add_option("--svg", flags->svg_file, "Draw what each machine does when")->type_name("FILE");
  sub->add_option("--scale", flags->scale_text,
                  "Plan for the first N machines, for each of these numbers")
      ->type_name("N,...");
  sub->add_flag("--remeasure", flags->remeasure, "Measure machines again");
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(
      "Nothing is loaded. -m may be a GGUF file, or a .json that describes a model. The best plan "
      "is the one that is done soonest with the prompt and the answer. docs/planning.md tells how "
      "it is predicted, what is not modelled, and the formats of files.\n\n"
      "Examples:\n"
      "  recua plan -m model.gguf\n"
      "  recua plan -m model.gguf --workers box1:7500,box2:7500 --streams 8\n"
      "  recua plan -m model.gguf --workers box1,box2 --tp 2 --save plan.json\n"
      "  recua plan -m model.gguf --simulate cluster.json --svg timeline.svg\n"
      "  recua plan -m 70b.json --simulate cluster.json --scale 8,64,512");
  sub->callback([flags, prompt, generate, &exit_code] {
    flags->lengths_given = prompt->count() > 0 || generate->count() > 0;
    exit_code = run_plan(*flags);
  });
}

}  // namespace recua::cli
