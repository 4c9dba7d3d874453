#include "cli/train_flags.h"

#include <algorithm>
#include <cmath>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/commands.h"
#include "gguf/value.h"
#include "model/lora.h"

namespace recua::cli {
namespace {

constexpr std::uint32_t kTrainCtxMax = 65536;
constexpr std::uint64_t kStepsMax = 1'000'000'000;

Error bad_value(std::string_view flag, const std::string& value, std::string_view right) {
  return {ErrorCode::kInvalidArgument, fmt::format("{} is {}, must be {}", flag, value, right)};
}

Result<void> check_count(std::string_view flag, std::uint64_t value, std::uint64_t low,
                         std::uint64_t high) {
  if (value >= low && value <= high) return ok();
  return bad_value(flag, fmt::to_string(value), fmt::format("from {} to {}", low, high));
}

/// Not a NaN either.
Result<void> check_number(std::string_view flag, double value, double low, double high) {
  if (value >= low && value <= high) return ok();
  return bad_value(flag, fmt::to_string(value), fmt::format("from {} to {}", low, high));
}

Result<void> check_new_model(const TrainFlags& flags) {
  const model::Architecture* const arch = model::find_architecture(flags.arch);
  if (arch == nullptr || arch->experts == model::Presence::kAlways) {
    return bad_value("--arch", gguf::quoted(flags.arch), "llama, qwen2 or qwen3");
  }
  RECUA_RETURN_IF_ERROR(check_count("--layers", flags.n_layers, 1, model::kLayersMax));
  RECUA_RETURN_IF_ERROR(check_count("--dim", flags.hidden_size, 2, 65536));
  RECUA_RETURN_IF_ERROR(check_count("--ffn", flags.ffn_size, 0, 262144));
  RECUA_RETURN_IF_ERROR(check_count("--heads", flags.n_heads, 1, 4096));
  RECUA_RETURN_IF_ERROR(check_count("--kv-heads", flags.n_kv_heads, 0, flags.n_heads));
  RECUA_RETURN_IF_ERROR(check_number("--rope-theta", flags.rope_theta, 2.0, 1e12));
  if (flags.n_kv_heads != 0 && flags.n_heads % flags.n_kv_heads != 0) {
    return bad_value("--kv-heads", fmt::to_string(flags.n_kv_heads),
                     fmt::format("a divisor of --heads ({})", flags.n_heads));
  }
  if (flags.head_dim == 0 && flags.hidden_size % flags.n_heads != 0) {
    return bad_value("--heads", fmt::to_string(flags.n_heads),
                     fmt::format("a divisor of --dim ({}), or give --head-dim", flags.hidden_size));
  }
  const std::uint32_t head_dim =
      flags.head_dim != 0 ? flags.head_dim : flags.hidden_size / flags.n_heads;
  RECUA_RETURN_IF_ERROR(check_count("--head-dim", head_dim, 2, 1024));
  if (head_dim % 2 != 0) {
    return bad_value("--head-dim", fmt::to_string(head_dim), "even: RoPE turns pairs");
  }
  return ok();
}

Result<void> check_lora(const TrainFlags& flags) {
  if (!flags.is_lora()) {
    if (flags.lora_alpha == 0.0 && flags.lora_targets.empty()) return ok();
    return missing("--lora-rank",
                   "--lora-alpha and --lora-targets are for an adapter, which has a "
                   "rank (8, say)");
  }
  if (flags.base.empty()) return missing("-m/--model", "the model that --lora-rank adapts");
  RECUA_RETURN_IF_ERROR(check_count("--lora-rank", flags.lora_rank, 1, model::kLoraRankMax));
  if (flags.lora_alpha != 0.0) {
    RECUA_RETURN_IF_ERROR(check_number("--lora-alpha", flags.lora_alpha, 1e-6, 1e6));
  }
  if (flags.lora_targets.empty()) return ok();
  auto targets = train::parse_lora_targets(flags.lora_targets);
  if (!targets.ok()) return std::move(targets).error().within("--lora-targets");
  return ok();
}

}  // namespace

void TrainFlags::add(CLI::App& app) {
  app.add_option("--data", data, "The text to learn: plain text, or .jsonl with prompt and reply");
  app.add_option("--out", out, "Folder for checkpoints, the log and the model");
  app.add_option("-m,--model", base, "Fine-tune this model: a GGUF file of any type");
  app.add_option("--lora-rank", lora_rank,
                 "Train an adapter of this rank beside the model, which stays as it is");
  app.add_option("--lora-alpha", lora_alpha,
                 "The adapter counts alpha / rank (default: twice the rank)");
  app.add_option("--lora-targets", lora_targets,
                 "Matrices to adapt: attn_q,attn_v,... or all (default)");
  app.add_option("--tokenizer", tokenizer, "Train a new model with the vocabulary of this GGUF");
  app.add_option("--arch", arch, "New model: llama, qwen2 or qwen3")->capture_default_str();
  app.add_option("--name", name, "New model: its name in the file")->capture_default_str();
  app.add_option("--layers", n_layers, "New model: layers")->capture_default_str();
  app.add_option("--dim", hidden_size, "New model: size of a token's vector")
      ->capture_default_str();
  app.add_option("--ffn", ffn_size,
                 "New model: size inside the feed-forward part (default: 8/3 of --dim)");
  app.add_option("--heads", n_heads, "New model: attention heads")->capture_default_str();
  app.add_option("--kv-heads", n_kv_heads,
                 "New model: heads of keys and values (default: --heads)");
  app.add_option("--head-dim", head_dim, "New model: size of a head (default: --dim / --heads)");
  app.add_option("--rope-theta", rope_theta, "New model: base of the rotary frequencies")
      ->capture_default_str();
  app.add_flag("--tied", tied, "New model: the embedding is the output matrix too");
  app.add_option("-c,--context", n_ctx, "Tokens of an example")->capture_default_str();
  app.add_option("--steps", n_steps, "Optimizer steps (default: by --epochs)");
  app.add_option("--epochs", epochs, "How often each example is seen")->capture_default_str();
  app.add_option("-b,--batch", batch, "Examples that are computed together")->capture_default_str();
  app.add_option("--accumulate", accumulate, "Batches of a step")->capture_default_str();
  app.add_option("--lr", lr, "Learning rate after the warm-up")->capture_default_str();
  app.add_option("--min-lr", lr_final, "Learning rate at the end (default: a tenth of --lr)");
  app.add_option("--warmup", n_warmup, "Steps of the warm-up (default: a twentieth of all)");
  app.add_option("--weight-decay", weight_decay, "Of matrices")->capture_default_str();
  app.add_option("--clip", clip_norm, "Longest gradient; 0: any")->capture_default_str();
  app.add_option("--seed", seed, "Of the first weights and the order of the examples")
      ->capture_default_str();
  app.add_option("--validation", validation_share, "Share of the examples to validate with")
      ->capture_default_str();
  app.add_option("--eval-every", eval_every, "Steps between validations (default: 20 in all)");
  app.add_option("--save-every", save_every, "Steps between checkpoints (default: 10 in all)");
  app.add_option("--keep", keep, "Checkpoints to keep")->capture_default_str();
  app.add_flag("--resume", resume, "Go on from the newest checkpoint in --out, if there is one");
  app.add_flag("--recompute", recompute,
               "Less memory, more time: compute activations again for the backward pass");
  app.add_option("-t,--threads", n_threads, "Threads to compute with (default: one per core)");
  app.add_flag("--json", json, "Print one JSON object at the end");
  workers.add(app);
}

Result<void> TrainFlags::check() {
  if (data.empty()) return missing("--data", "the text to learn");
  if (out.empty()) return missing("--out", "the folder for checkpoints and the model");
  if (base.empty() == tokenizer.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 base.empty() ? "-m/--model or --tokenizer is missing: the model to fine-tune, or "
                                "the vocabulary of a new one"
                              : "-m/--model and --tokenizer are both given: a model that is "
                                "fine-tuned has its own vocabulary"};
  }
  if (base.empty()) RECUA_RETURN_IF_ERROR(check_new_model(*this));
  RECUA_RETURN_IF_ERROR(check_lora(*this));
  RECUA_RETURN_IF_ERROR(check_count("--context", n_ctx, 2, kTrainCtxMax));
  RECUA_RETURN_IF_ERROR(check_count("--steps", n_steps, 0, kStepsMax));
  RECUA_RETURN_IF_ERROR(check_number("--epochs", epochs, 1e-6, 1e6));
  RECUA_RETURN_IF_ERROR(check_count("--batch", batch, 1, 65536));
  RECUA_RETURN_IF_ERROR(check_count("--accumulate", accumulate, 1, 65536));
  RECUA_RETURN_IF_ERROR(check_number("--lr", lr, 0.0, 1e30));
  if (lr_final >= 0.0) RECUA_RETURN_IF_ERROR(check_number("--min-lr", lr_final, 0.0, lr));
  RECUA_RETURN_IF_ERROR(check_number("--weight-decay", weight_decay, 0.0, 1e3));
  RECUA_RETURN_IF_ERROR(check_number("--clip", clip_norm, 0.0, 1e12));
  RECUA_RETURN_IF_ERROR(check_number("--validation", validation_share, 0.0, 0.9));
  RECUA_RETURN_IF_ERROR(check_count("--keep", keep, 1, 1000));
  RECUA_RETURN_IF_ERROR(check_count("--threads", n_threads, 0, 1024));
  RECUA_RETURN_IF_ERROR(workers.check());
  if (!is_lora() || !workers.any()) return ok();
  return Error{ErrorCode::kInvalidArgument,
               "--lora-rank trains on this machine only: leave --workers and --local-workers away"};
}

train::ModelShape TrainFlags::new_shape(std::uint32_t vocab_size) const {
  train::ModelShape shape;
  model::HyperParams& hp = shape.hp;
  hp.architecture = model::find_architecture(arch);
  hp.name = name;
  hp.vocab_size = vocab_size;
  hp.n_ctx_train = n_ctx;
  hp.n_layers = n_layers;
  hp.hidden_size = hidden_size;
  hp.n_heads = n_heads;
  hp.n_kv_heads = n_kv_heads != 0 ? n_kv_heads : n_heads;
  hp.head_dim = head_dim != 0 ? head_dim : hidden_size / n_heads;
  hp.rope_dim = hp.head_dim;
  hp.ffn_size = ffn_size != 0 ? ffn_size : (hidden_size * 8 / 3 + 31) / 32 * 32;
  hp.rope_theta = static_cast<float>(rope_theta);
  shape.qkv_bias = hp.architecture->qkv_bias == model::Presence::kAlways;
  shape.qk_norm = hp.architecture->qk_norm == model::Presence::kAlways;
  shape.tied = tied;
  return shape;
}

train::TrainerOptions TrainFlags::trainer_options(std::size_t n_train) const {
  train::TrainerOptions options;
  const double per_step = static_cast<double>(batch) * accumulate;
  const double by_epochs = std::ceil(epochs * static_cast<double>(n_train) / per_step);
  const std::uint64_t steps =
      n_steps != 0
          ? n_steps
          : static_cast<std::uint64_t>(std::clamp(by_epochs, 1.0, static_cast<double>(kStepsMax)));
  options.schedule = {.lr = lr,
                      .lr_final = lr_final < 0.0 ? lr / 10.0 : lr_final,
                      .n_warmup = n_warmup < 0 ? steps / 20 : static_cast<std::uint64_t>(n_warmup),
                      .n_steps = steps};
  options.adam.weight_decay = weight_decay;
  options.adam.clip_norm = clip_norm;
  options.batch = batch;
  options.accumulate = accumulate;
  options.n_ctx = n_ctx;
  options.seed = seed;
  return options;
}

train::LoraOptions TrainFlags::lora_options() const {
  const std::string text = lora_targets.empty() ? "all" : lora_targets;
  return {.rank = lora_rank,
          .alpha = lora_alpha != 0.0 ? static_cast<float>(lora_alpha)
                                     : 2.0F * static_cast<float>(lora_rank),
          .targets = train::parse_lora_targets(text).value()};
}

std::string TrainFlags::settings(const train::ModelShape& shape,
                                 const train::TrainerOptions& options,
                                 const train::Dataset& dataset,
                                 const std::string& base_identity) const {
  const model::HyperParams& hp = shape.hp;
  std::string lines;
  const auto line = [&lines](std::string_view key, const auto& value) {
    lines += fmt::format("{}={}\n", key, value);
  };
  line("kind", base.empty() ? "new" : is_lora() ? "adapter" : "fine-tuning");
  if (!base.empty()) line("model", base_identity);
  if (is_lora()) {
    const train::LoraOptions lora = lora_options();
    line("lora-rank", lora.rank);
    line("lora-alpha", lora.alpha);
    line("lora-targets", fmt::format("{}", fmt::join(lora.targets, ",")));
  }
  line("arch", hp.architecture->name);
  line("layers", hp.n_layers);
  line("dim", hp.hidden_size);
  line("ffn", hp.ffn_size);
  line("heads", hp.n_heads);
  line("kv-heads", hp.n_kv_heads);
  line("head-dim", hp.head_dim);
  line("vocab", hp.vocab_size);
  line("rope-theta", hp.rope_theta);
  line("tied", shape.tied);
  line("context", options.n_ctx);
  line("data", fmt::format("{:016x}", dataset.fingerprint()));
  line("examples", dataset.n_train());
  line("validation", validation_share);
  line("steps", options.schedule.n_steps);
  line("batch", options.batch);
  line("accumulate", options.accumulate);
  line("lr", options.schedule.lr);
  line("min-lr", options.schedule.lr_final);
  line("warmup", options.schedule.n_warmup);
  line("weight-decay", weight_decay);
  line("clip", clip_norm);
  line("seed", seed);
  return lines;
}

}  // namespace recua::cli
