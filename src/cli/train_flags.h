#pragma once
/// The flags of recua train.

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "cli/app.h"
#include "cli/train_workers.h"
#include "train/lora.h"
#include "train/parameters.h"
#include "train/trainer.h"

namespace recua::cli {

struct TrainFlags {
  std::string data;
  std::string out;
  std::string base;       // -m: fine-tune this model.
  std::string tokenizer;  // Else a new one with this vocabulary.
  std::string arch = "llama";
  std::string name = "trained by recua";
  std::uint32_t n_layers = 4;
  std::uint32_t hidden_size = 256;
  std::uint32_t ffn_size = 0;  // 0: 8/3 of hidden_size, up to a multiple of 32.
  std::uint32_t n_heads = 4;
  std::uint32_t n_kv_heads = 0;  // 0: as many as heads.
  std::uint32_t head_dim = 0;    // 0: hidden_size / n_heads.
  std::uint32_t n_ctx = 256;
  double rope_theta = 10000.0;
  bool tied = false;

  std::uint32_t lora_rank = 0;  // 0: all weights are trained.
  double lora_alpha = 0.0;      // 0: twice the rank.
  std::string lora_targets;     // Empty: all.

  std::uint64_t n_steps = 0;  // 0: by epochs.
  double epochs = 1.0;
  std::uint32_t batch = 8;
  std::uint32_t accumulate = 1;
  double lr = 1e-3;
  double lr_final = -1.0;      // Negative: a tenth of lr.
  std::int64_t n_warmup = -1;  // Negative: a twentieth of the steps.
  double weight_decay = 0.1;
  double clip_norm = 1.0;
  std::uint64_t seed = 1;
  double validation_share = 0.05;

  std::uint64_t eval_every = 0;  // 0: twenty times in the run.
  std::uint64_t save_every = 0;  // 0: ten times in the run.
  std::uint32_t keep = 3;
  bool resume = false;
  bool recompute = false;
  std::uint32_t n_threads = 0;  // 0: one per core.
  bool json = false;
  TrainWorkersFlags workers;

  void add(CLI::App& app);
  /// Whatever can be told without reading a file. kInvalidArgument: names the flag.
  [[nodiscard]] Result<void> check();
  /// Of a new model; the flags have been checked.
  [[nodiscard]] train::ModelShape new_shape(std::uint32_t vocab_size) const;
  /// The run's options, for so many examples to train on. recompute is left to the caller.
  [[nodiscard]] train::TrainerOptions trainer_options(std::size_t n_train) const;
  /// Whether an adapter is trained, and which. The flags have been checked.
  [[nodiscard]] bool is_lora() const { return lora_rank != 0; }
  [[nodiscard]] train::LoraOptions lora_options() const;
  /// What a resumed run must have been started with, a line "name=value" each. base_identity: of
  /// the model to fine-tune, if there is one (train/model_file.h).
  [[nodiscard]] std::string settings(const train::ModelShape& shape,
                                     const train::TrainerOptions& options,
                                     const train::Dataset& dataset,
                                     const std::string& base_identity) const;
};

}  // namespace recua::cli
