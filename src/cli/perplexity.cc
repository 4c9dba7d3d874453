// recua perplexity: how well a model predicts a text.
//
// The text is tokenized without BOS and cut into windows of n_ctx - 1 tokens. Each window is read
// on its own, with BOS in front, and every token of the text is scored; perplexity is exp of the
// mean negative log-probability. Windows share steps, which changes no number.

#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/log.h"
#include "cli/backend.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "engine/engine.h"

namespace recua::cli {
namespace {

constexpr std::uint32_t kDefaultCtx = 512;

struct PerplexityFlags {
  BackendFlags backend;
  PromptFlags text;
  bool json = false;
};

struct Score {
  double nll_sum = 0.0;
  std::size_t n_tokens = 0;

  [[nodiscard]] double nll() const { return nll_sum / static_cast<double>(n_tokens); }
  [[nodiscard]] double perplexity() const { return std::exp(nll()); }
};

/// The sequences to score. Without BOS in the vocabulary the first token of a window is not scored.
std::vector<std::vector<TokenId>> cut_windows(const std::vector<TokenId>& ids,
                                              std::optional<TokenId> bos, std::size_t n_ctx) {
  std::vector<std::vector<TokenId>> windows;
  const std::size_t step = bos ? n_ctx - 1 : n_ctx;
  for (std::size_t begin = 0; begin < ids.size(); begin += step) {
    const std::size_t end = std::min(begin + step, ids.size());
    std::vector<TokenId> window;
    if (bos) window.push_back(*bos);
    window.insert(window.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                  ids.begin() + static_cast<std::ptrdiff_t>(end));
    if (window.size() > 1) windows.push_back(std::move(window));
  }
  return windows;
}

/// Scores windows with at most n_at_once of them in the engine, so that memory does not grow with
/// the text. Sums in the order of the text, whatever the order in which windows end.
class Scorer {
 public:
  Scorer(Backend& backend, std::vector<std::vector<TokenId>> windows, std::size_t n_at_once)
      : backend_(&backend),
        engine_(backend.loop.get_executor(), backend.clock, *backend.executor),
        windows_(std::move(windows)),
        nll_(windows_.size(), 0.0),
        n_at_once_(n_at_once),
        bar_("perplexity", ProgressBar::Unit::kCount) {
    for (const auto& window : windows_) n_tokens_ += window.size() - 1;
  }

  Result<Score> run() {
    const Interrupt interrupt(backend_->loop, [this] {
      fail({ErrorCode::kCancelled, "interrupted before the text was scored"});
    });
    backend_->loop.restart();
    while (!error_ && n_finished_ < windows_.size()) {
      while (!error_ && next_ < windows_.size() && next_ - n_finished_ < n_at_once_)
        submit(next_++);
      RECUA_CHECK(backend_->loop.run_one() > 0);
    }
    bar_.finish();
    if (error_) return *error_;
    Score score{.n_tokens = n_tokens_};
    for (const double nll : nll_) score.nll_sum += nll;
    return score;
  }

  [[nodiscard]] std::size_t n_windows() const { return windows_.size(); }

 private:
  void submit(std::size_t index) {
    engine::Request request;
    request.prompt = windows_[index];
    request.n_predict = 0;
    request.prompt_n_top = 0;
    engine::RequestCallbacks callbacks;
    callbacks.on_token = [this, index](engine::TokenEvent&& event) {
      nll_[index] -= event.logprob;
      running_.nll_sum -= event.logprob;
      ++running_.n_tokens;
    };
    callbacks.on_finish = [this](engine::Finish&& finish) {
      ++n_finished_;
      if (finish.error) fail(*finish.error);
      if (running_.n_tokens > 0) {
        bar_.update(running_.n_tokens, n_tokens_, fmt::format("ppl {:.4f}", running_.perplexity()));
      }
    };
    const auto id = engine_.submit(std::move(request), std::move(callbacks));
    if (!id.ok()) fail(id.error());
  }

  void fail(const Error& error) {
    if (!error_) error_ = error;
  }

  Backend* backend_;
  engine::Engine engine_;
  std::vector<std::vector<TokenId>> windows_;
  std::vector<double> nll_;  // By window: summed in the order of its tokens.
  std::size_t n_at_once_;
  std::size_t n_tokens_ = 0;
  std::size_t next_ = 0;
  std::size_t n_finished_ = 0;
  Score running_;
  std::optional<Error> error_;
  ProgressBar bar_;
};

int perplexity(PerplexityFlags& flags) {
  if (const auto checked = flags.backend.check(); !checked.ok()) return report(checked.error());
  auto text = flags.text.read();
  if (!text.ok()) return report(text.error());
  ModelFlags& model = flags.backend.model;
  BackendNeeds needs;
  if (!model.ctx_given) needs.n_ctx = kDefaultCtx;
  if (model.ctx_given && model.n_ctx == 1) {
    return report(
        {ErrorCode::kInvalidArgument, "-c/--ctx-size is 1, need at least 2 to score a token"});
  }
  // As many windows as fill a step.
  const std::uint32_t n_ctx_asked = needs.n_ctx.value_or(model.n_ctx);
  needs.n_sequences = n_ctx_asked == 0 ? 1 : std::max(1U, model.n_batch / n_ctx_asked);
  std::vector<TokenId> ids;
  needs.before_load = [&](const tokenizer::Tokenizer& tokenizer) -> Result<void> {
    ids = tokenizer.encode(*text, {.add_bos = false});
    return ok();
  };
  auto opened = open_backend(flags.backend, needs);
  if (!opened.ok()) return report(opened.error());
  Backend& backend = **opened;
  const std::uint32_t n_ctx = backend.executor->info().n_ctx;
  if (n_ctx < 2) {  // Of the model itself, with -c 0.
    return report(
        {ErrorCode::kInvalidArgument,
         fmt::format("the context is {}, need at least 2 to score a token: give it by -c", n_ctx)});
  }

  const tokenizer::Tokenizer& tokenizer = *backend.tokenizer;
  std::vector<std::vector<TokenId>> windows = cut_windows(ids, tokenizer.bos(), n_ctx);
  if (windows.empty())
    return report({ErrorCode::kInvalidArgument, "the text has no tokens to score"});
  // Twice as many as run, so that the next ones wait in the engine and no step is half full.
  Scorer scorer(backend, std::move(windows), std::size_t{2} * needs.n_sequences);
  const net::TimePoint begin = backend.clock.now();
  const auto score = scorer.run();
  const double seconds = std::chrono::duration<double>(backend.clock.now() - begin).count();
  if (!score.ok()) return report(score.error());

  const double tokens_per_second = static_cast<double>(score->n_tokens) / seconds;
  if (flags.json) {
    nlohmann::ordered_json out;
    out["model"] = model.model;
    out["ctx"] = n_ctx;
    out["windows"] = scorer.n_windows();
    out["tokens"] = score->n_tokens;
    out["nll"] = score->nll();
    out["ppl"] = score->perplexity();
    out["seconds"] = seconds;
    out["tokens_per_second"] = tokens_per_second;
    constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
    fmt::print("{}\n", out.dump(-1, ' ', false, kReplace));
  } else {
    fmt::print("ppl {:.4f}  nll {:.6f}  tokens {}  ctx {}\n", score->perplexity(), score->nll(),
               score->n_tokens, n_ctx);
    if (log_enabled(LogLevel::kWarning))
      fmt::print(stderr, "[{}; {:.1f} tokens/s]\n", backend.executor->info().description,
                 tokens_per_second);
  }
  return kExitOk;
}

}  // namespace

void register_perplexity(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("perplexity", "Measure how well a model predicts a text");
  const auto flags = std::make_shared<PerplexityFlags>();
  flags->text.add(*sub);
  flags->backend.add(*sub);
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(
      "The text is cut into windows of ctx - 1 tokens (default ctx: 512); each is read with BOS "
      "in\n"
      "front, and every token of the text is scored.\n\n"
      "Examples:\n"
      "  recua perplexity -m model.gguf -f text.txt\n"
      "  recua perplexity -m model.gguf -f text.txt -c 2048 --json\n"
      "  recua perplexity -m model.gguf -f text.txt --workers 10.0.0.5:7500,10.0.0.6:7500");
  sub->callback([flags, &exit_code] { exit_code = perplexity(*flags); });
}

}  // namespace recua::cli
