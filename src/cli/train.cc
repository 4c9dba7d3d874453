// recua train: a model from a text, new or fine-tuned.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <boost/asio/io_context.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/train_flags.h"
#include "cli/train_workers.h"
#include "cli/units.h"
#include "gguf/gguf_file.h"
#include "model/vocab.h"
#include "sys/memory.h"
#include "sys/topology.h"
#include "train/loss_log.h"
#include "train/loss_plot.h"
#include "train/model_file.h"
#include "train/trainer.h"

namespace recua::cli {
namespace {

namespace fs = std::filesystem;

// From here on activations are computed again for the backward pass rather than kept.
constexpr std::size_t kKeptBytesMax = std::size_t{2} << 30;

/// What a run consists of, in the order in which it is made.
struct Run {
  TrainFlags flags;
  std::optional<gguf::GgufFile> source = {};
  train::ModelShape shape = {};
  std::optional<train::LoraModel> lora = {};  // Of source; for an adapter only.
  std::optional<train::Dataset> dataset = {};
  train::TrainerOptions options = {};
  std::optional<train::Team> team = {};
  std::optional<train::Trainer> trainer = {};
  std::unique_ptr<TrainWorkers> workers = {};  // None: the trainer computes here.
  std::optional<train::CheckpointFolder> folder = {};
  std::string settings = {};
  std::uint64_t n_resumed = 0;
  std::uint64_t eval_every = 1;
  std::uint64_t save_every = 1;

  [[nodiscard]] const train::LoraModel* adapted() const { return lora ? &*lora : nullptr; }
  [[nodiscard]] fs::path model_path() const {
    return fs::path(flags.out) / (lora ? "adapter.gguf" : "model.gguf");
  }
  [[nodiscard]] fs::path best_path() const {
    return fs::path(flags.out) / (lora ? "best-adapter.gguf" : "best.gguf");
  }
};

Result<void> read_inputs(Run& run) {
  const TrainFlags& flags = run.flags;
  const bool is_new = flags.base.empty();
  auto file = gguf::GgufFile::open(is_new ? flags.tokenizer : flags.base);
  if (!file.ok()) {
    return std::move(file).error().within(is_new ? "--tokenizer" : "-m/--model");
  }
  run.source = std::move(file).value();
  RECUA_ASSIGN_OR_RETURN(const tokenizer::Tokenizer tokenizer, model::load_tokenizer(*run.source));
  if (is_new) {
    run.shape = flags.new_shape(static_cast<std::uint32_t>(tokenizer.size()));
  } else {
    RECUA_ASSIGN_OR_RETURN(run.shape, train::read_shape(*run.source));
    if (flags.n_ctx > run.shape.hp.n_ctx_train) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("--context is {}, the model was made for at most {}", flags.n_ctx,
                               run.shape.hp.n_ctx_train)};
    }
    if (tokenizer.size() > run.shape.hp.vocab_size) {
      return Error{ErrorCode::kCorrupt,
                   fmt::format("{}: {} tokens, but the embedding has only {} rows", flags.base,
                               tokenizer.size(), run.shape.hp.vocab_size)};
    }
    if (flags.is_lora()) {
      RECUA_ASSIGN_OR_RETURN(
          run.lora, train::LoraModel::create(*run.source, run.shape, flags.lora_options()));
    }
  }
  auto dataset = train::Dataset::open(
      flags.data, tokenizer, {.n_ctx = flags.n_ctx, .validation_share = flags.validation_share});
  if (!dataset.ok()) return std::move(dataset).error().within("--data");
  run.dataset = std::move(dataset).value();
  return ok();
}

/// Before memory is asked for: the system promises more than it has, and then ends the process.
Result<void> check_memory(const Run& run, std::size_t network_bytes) {
  const std::uint64_t n_params =
      run.lora ? run.lora->layout().n_params() : train::ParameterLayout(run.shape).n_params();
  const std::uint64_t batch_bytes = train::batch_bytes(run.options.batch, run.options.n_ctx) *
                                    std::uint64_t{run.options.accumulate};
  // Weights, gradient, two moments. (Pages of a model that is adapted come back from its file.)
  const std::uint64_t needed = 16 * n_params + network_bytes + batch_bytes;
  const std::uint64_t available = sys::memory_info().available_bytes;
  if (available == 0 || needed <= available) return ok();
  return Error{
      ErrorCode::kResourceExhausted,
      fmt::format("training {} weights needs {} ({} of it for activations, {} for the "
                  "tokens of --accumulate batches), this machine has {} available; a "
                  "smaller --batch, --context or --accumulate, or --recompute{} needs less",
                  human_count(n_params), human_bytes(needed), human_bytes(network_bytes),
                  human_bytes(batch_bytes), human_bytes(available),
                  run.lora || run.flags.base.empty() ? "" : ", or --lora-rank")};
}

/// Whether there are checkpoints to go on from.
Result<bool> open_folder(Run& run) {
  const TrainFlags& flags = run.flags;
  RECUA_ASSIGN_OR_RETURN(run.folder, train::CheckpointFolder::open(flags.out, flags.keep));
  RECUA_ASSIGN_OR_RETURN(const std::vector<fs::path> old, run.folder->list());
  if (old.empty() || flags.resume) return !old.empty();
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("--out is {}, which has checkpoints: give --resume to go on from {}, or "
                           "another folder",
                           flags.out, old.back().filename().string())};
}

Result<void> make_trainer(Run& run) {
  const std::size_t n_threads = run.flags.n_threads != 0
                                    ? run.flags.n_threads
                                    : sys::default_thread_count(sys::detect_topology());
  train::NetworkLimits limits{.rows_max = run.options.batch * run.options.n_ctx,
                              .sequence_max = run.options.n_ctx};
  limits.recompute = run.flags.recompute || train::network_bytes(run.shape, limits, n_threads,
                                                                 run.adapted()) > kKeptBytesMax;
  run.options.recompute = limits.recompute;
  RECUA_RETURN_IF_ERROR(
      check_memory(run, train::network_bytes(run.shape, limits, n_threads, run.adapted())));
  RECUA_ASSIGN_OR_RETURN(const sys::InstructionSet set, sys::choose_instruction_set("auto"));
  RECUA_ASSIGN_OR_RETURN(run.team, train::Team::create(n_threads, set));
  RECUA_ASSIGN_OR_RETURN(run.trainer, train::Trainer::create(*run.team, *run.dataset, run.shape,
                                                             run.options, run.adapted()));
  return ok();
}

/// From a checkpoint, the model to fine-tune, or random numbers.
Result<void> set_weights(Run& run, bool from_checkpoint) {
  train::Trainer& trainer = *run.trainer;
  if (from_checkpoint) {
    RECUA_ASSIGN_OR_RETURN(const train::LoadedCheckpoint loaded,
                           run.folder->load(run.settings, trainer.state()));
    for (const std::string& fault : loaded.skipped) {
      log_warning("skipped a checkpoint: {}", fault);
    }
    log_info("going on from {}", loaded.path.string());
    trainer.run() = loaded.run;
    run.n_resumed = loaded.run.step;
    return ok();
  }
  if (!run.flags.base.empty() && !run.lora) {
    return train::read_params(*run.source, trainer.layout(), trainer.params());
  }
  trainer.layout().initialize(run.flags.seed, trainer.params());
  return ok();
}

train::ModelExport how_written(const Run& run) {
  return {.source = &*run.source, .from_model = !run.flags.base.empty()};
}

Result<void> prepare(Run& run) {
  TrainFlags& flags = run.flags;
  RECUA_RETURN_IF_ERROR(flags.check());
  RECUA_RETURN_IF_ERROR(read_inputs(run));
  run.options = flags.trainer_options(run.dataset->n_train());
  run.settings =
      flags.settings(run.shape, run.options, *run.dataset,
                     flags.base.empty() ? std::string{} : train::model_identity(*run.source));
  const auto every = [&run](std::uint64_t asked, std::uint64_t times) {
    return asked != 0 ? asked : std::max<std::uint64_t>(1, run.options.schedule.n_steps / times);
  };
  run.eval_every = every(flags.eval_every, 20);
  run.save_every = every(flags.save_every, 10);
  RECUA_ASSIGN_OR_RETURN(const bool from_checkpoint, open_folder(run));
  if (flags.workers.any()) {
    RECUA_ASSIGN_OR_RETURN(run.workers, TrainWorkers::connect(flags.workers, flags.n_threads));
  }
  RECUA_RETURN_IF_ERROR(make_trainer(run));
  log_info("{}: {} examples to learn, {} to validate with; {} steps of {} examples", flags.data,
           run.dataset->n_train(), run.dataset->n_validation(), run.options.schedule.n_steps,
           run.trainer->examples_per_step());
  RECUA_RETURN_IF_ERROR(set_weights(run, from_checkpoint));
  if (run.workers == nullptr) return ok();
  return run.workers->begin(*run.trainer, run.shape,
                            train::shape_gguf(run.shape, how_written(run)));
}

Result<void> write_to(const Run& run, const fs::path& path) {
  if (run.lora) return train::write_adapter(path, run.shape, *run.lora, run.trainer->params());
  return train::write_model(path, run.shape, run.trainer->layout(), run.trainer->params(),
                            how_written(run));
}

Result<void> save(Run& run) {
  auto saved = run.folder->save(run.trainer->run(), run.settings, run.trainer->state());
  if (saved.ok()) return ok();
  return std::move(saved).error().within(fmt::format(
      "step {} was not saved, earlier checkpoints are as they were", run.trainer->run().step));
}

struct Outcome {
  std::optional<double> loss = {};
  std::optional<double> validation_loss = {};
  double tokens_per_second = 0.0;
  double seconds = 0.0;
  bool interrupted = false;
};

class Clock {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// Validates, and keeps the weights if they are the best so far.
Result<double> validate(Run& run) {
  const double loss = run.trainer->validate();
  if (loss < run.trainer->run().best_loss) {
    run.trainer->run().best_loss = loss;
    RECUA_RETURN_IF_ERROR(write_to(run, run.best_path()));
  }
  return loss;
}

Result<void> draw_loss(const Run& run, const train::LossLog& log) {
  const fs::path folder = fs::path(run.flags.out) / "";  // So that "run/" has a name, too.
  const std::string title = fmt::format("{}: {} weights", folder.parent_path().filename().string(),
                                        human_count(run.trainer->layout().n_params()));
  return write_file_atomically(folder / "loss.svg", as_bytes(train::loss_svg(log.records(), title)),
                               Durability::kMayBeLost);
}

Result<Outcome> run_steps(Run& run) {
  train::Trainer& trainer = *run.trainer;
  RECUA_ASSIGN_OR_RETURN(train::LossLog log,
                         train::LossLog::open(fs::path(run.flags.out) / "log.csv", run.n_resumed));
  boost::asio::io_context loop;
  const Interrupt interrupt(loop, [] {});
  ProgressBar bar("training", ProgressBar::Unit::kCount);
  const Clock clock;
  Outcome out;
  double computing = 0.0;  // Seconds in steps, without validation and saving.
  double n_tokens = 0.0;
  const std::uint64_t n_steps = run.options.schedule.n_steps;
  while (trainer.run().step < n_steps && !out.interrupted) {
    const Clock step_clock;
    RECUA_ASSIGN_OR_RETURN(const train::StepReport report,
                           run.workers != nullptr ? run.workers->step() : trainer.step());
    const double seconds = step_clock.seconds();
    computing += seconds;
    n_tokens += static_cast<double>(report.n_tokens);
    out.loss = report.loss;
    out.interrupted = interrupt.happened();
    const bool last = report.step == n_steps || out.interrupted;
    std::optional<double> validation_loss;
    if (run.dataset->n_validation() > 0 && (last || report.step % run.eval_every == 0)) {
      RECUA_ASSIGN_OR_RETURN(validation_loss, validate(run));
      out.validation_loss = validation_loss;
    }
    RECUA_RETURN_IF_ERROR(
        log.append({.step = report.step,
                    .loss = report.loss,
                    .validation_loss = validation_loss,
                    .learning_rate = report.lr,
                    .gradient_norm = report.grad_norm,
                    .tokens_per_second = static_cast<double>(report.n_tokens) / seconds}));
    if (last || report.step % run.save_every == 0) RECUA_RETURN_IF_ERROR(save(run));
    const std::string validation =
        out.validation_loss ? fmt::format("  val {:.4f}", *out.validation_loss) : "";
    bar.update(report.step - run.n_resumed, n_steps - run.n_resumed,
               fmt::format("loss {:.4f}{}  {:.0f} tokens/s  grad {:.3f}", report.loss, validation,
                           n_tokens / computing, report.grad_norm));
  }
  bar.finish();
  RECUA_RETURN_IF_ERROR(write_to(run, run.model_path()));
  RECUA_RETURN_IF_ERROR(draw_loss(run, log));
  out.seconds = clock.seconds();
  out.tokens_per_second = computing > 0.0 ? n_tokens / computing : 0.0;
  return out;
}

void print_outcome(Run& run, const Outcome& outcome) {
  const train::RunPosition& position = run.trainer->run();
  if (run.flags.json) {
    nlohmann::ordered_json out;
    const auto number = [](std::optional<double> value) {
      return value && std::isfinite(*value) ? nlohmann::ordered_json(*value)
                                            : nlohmann::ordered_json(nullptr);
    };
    out["model"] = run.model_path().string();
    out["n_params"] = run.trainer->layout().n_params();
    out["steps"] = position.step;
    out["resumed_from"] = run.n_resumed;
    out["interrupted"] = outcome.interrupted;
    out["loss"] = number(outcome.loss);
    out["validation_loss"] = number(outcome.validation_loss);
    out["best_validation_loss"] = number(position.best_loss);
    out["examples"] = run.dataset->n_train();
    out["validation_examples"] = run.dataset->n_validation();
    out["recompute"] = run.options.recompute;
    if (run.workers != nullptr) out["workers"] = run.workers->n_workers();
    out["tokens_per_second"] = outcome.tokens_per_second;
    out["seconds"] = outcome.seconds;
    fmt::print("{}\n", out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return;
  }
  const auto text = [](std::string_view label, std::optional<double> value) {
    return value && std::isfinite(*value) ? fmt::format("  {} {:.4f}", label, *value) : "";
  };
  fmt::print("{}: {} weights, step {} of {}{}{}{}  {:.0f} tokens/s  {:.1f} s\n",
             run.model_path().string(), human_count(run.trainer->layout().n_params()),
             position.step, run.options.schedule.n_steps, text("loss", outcome.loss),
             text("val", outcome.validation_loss), text("best", position.best_loss),
             outcome.tokens_per_second, outcome.seconds);
}

int train_command(const TrainFlags& flags) {
  show_info_lines();
  Run run{.flags = flags};
  if (const auto prepared = prepare(run); !prepared.ok()) return report(prepared.error());
  const auto outcome = run_steps(run);
  if (!outcome.ok()) {
    const auto saved = run.folder->list();
    const bool any = saved.ok() && !saved->empty();
    return report(outcome.error(),
                  any ? fmt::format("the last good checkpoint is {}; --resume goes on from there",
                                    saved->back().string())
                      : std::string{});
  }
  print_outcome(run, *outcome);
  return outcome->interrupted ? kExitInterrupted : kExitOk;
}

}  // namespace

void register_train(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("train", "Train a new model on a text, or fine-tune one");
  const auto flags = std::make_shared<TrainFlags>();
  flags->add(*sub);
  sub->footer(
      "The folder --out gets log.csv (a line per step), checkpoint-*.recua, best.gguf (the\n"
      "weights with the lowest validation loss), and at the end model.gguf and loss.svg. The\n"
      "models are F32: see recua quantize. With --lora-rank, best-adapter.gguf and adapter.gguf\n"
      "take their place: see recua run --lora and recua export-lora. The same command with\n"
      "--resume goes on where a run ended, to the bit.\n\n"
      "Examples:\n"
      "  recua train --tokenizer vocab.gguf --data novels.txt --out run1 \\\n"
      "      --layers 6 --dim 192 --heads 6 --kv-heads 2 --tied --epochs 3\n"
      "  recua train --tokenizer vocab.gguf --data novels.txt --out run1 ... --resume\n"
      "  recua train -m base.gguf --data answers.jsonl --out tuned --steps 200 --lr 1e-4\n"
      "  recua train -m base.gguf --data a.jsonl --out tuned --workers box1:7500,box2:7500\n"
      "  recua train --tokenizer vocab.gguf --data novels.txt --out run2 --local-workers 2 -t 1\n"
      "  recua train -m base-q8_0.gguf --lora-rank 8 --data answers.jsonl --out tuned\n"
      "  recua quantize run1/model.gguf novels-q8_0.gguf Q8_0");
  sub->callback([flags, &exit_code] { exit_code = train_command(*flags); });
}

}  // namespace recua::cli
