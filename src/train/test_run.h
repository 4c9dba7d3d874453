#pragma once
/// What the tests of whole runs share: a text, a small model, and options.

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "base/scratch_folder.h"
#include "model/test_models.h"
#include "model/vocab.h"
#include "train/trainer.h"

namespace recua::train {

class TestRun : public ::testing::Test {
 protected:
  static constexpr std::size_t kCtx = 16;

  TestRun() {
    const std::filesystem::path text = scratch_ / "text.txt";
    std::ofstream out(text);
    for (int i = 0; i < 60; ++i) {
      out << "Once upon a time there was a mule named Lily who carried " << i << " stones. ";
    }
    out.close();
    const auto file = model::open_golden("models/stories260K.gguf");
    const auto tokenizer = model::load_tokenizer(*file);
    dataset_ = Dataset::open(text, *tokenizer, {.n_ctx = kCtx, .validation_share = 0.1}).value();
    shape_.hp.architecture = model::find_architecture("llama");
    shape_.hp.vocab_size = 512;
    shape_.hp.n_ctx_train = kCtx;
    shape_.hp.n_layers = 2;
    shape_.hp.hidden_size = 32;
    shape_.hp.n_heads = 4;
    shape_.hp.n_kv_heads = 2;
    shape_.hp.head_dim = 8;
    shape_.hp.rope_dim = 8;
    shape_.hp.ffn_size = 64;
    options_.schedule = {.lr = 3e-3, .lr_final = 3e-4, .n_warmup = 3, .n_steps = 12};
    options_.batch = 4;
    options_.n_ctx = kCtx;
  }
  Trainer trainer(Team& team) { return Trainer::create(team, *dataset_, shape_, options_).value(); }
  static Team team(std::size_t n_threads) {
    return Team::create(n_threads, sys::supported_instruction_sets().back()).value();
  }
  static std::vector<float> copy(std::span<const float> x) { return {x.begin(), x.end()}; }

  ScratchFolder scratch_;
  std::optional<Dataset> dataset_;
  ModelShape shape_;
  TrainerOptions options_;
};

}  // namespace recua::train
