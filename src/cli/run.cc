// recua run: a prompt in, its continuation out, as it is generated.

#include <algorithm>
#include <cstdio>
#include <limits>
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
#include "engine/engine.h"
#include "tokenizer/detokenizer.h"

namespace recua::cli {
namespace {

using Json = nlohmann::ordered_json;

struct RunFlags {
  BackendFlags backend;
  SamplingFlags sampling;
  PromptFlags prompt;
  std::optional<std::string> prompt_ids;
  std::int64_t n_predict = -1;
  bool ignore_eos = false;
  bool echo = false;
  bool no_display_prompt = false;
  bool json = false;
  std::optional<std::uint32_t> n_logprobs;
  std::optional<std::uint32_t> n_prompt_logprobs;
};

/// What came of the request.
struct Answer {
  std::vector<TokenId> ids;
  std::string text;
  std::vector<engine::TokenEvent> tokens;         // With --logprobs.
  std::vector<engine::TokenEvent> prompt_tokens;  // With --prompt-logprobs.
  std::optional<engine::Finish> finish;
  Result<void> written = ok();  // Of the text, to standard output.
};

/// What was asked for, before there is a tokenizer.
struct Prompt {
  std::string text;
  std::optional<std::vector<TokenId>> ids;  // Instead of the text.
};

Result<void> check(const RunFlags& flags) {
  if (flags.n_predict < -1) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("-n/--n-predict is {}, need a number from 0, or -1 for as many as the "
                             "context holds",
                             flags.n_predict)};
  }
  if (!flags.json && (flags.n_logprobs || flags.n_prompt_logprobs)) {
    return Error{ErrorCode::kInvalidArgument,
                 "--logprobs and --prompt-logprobs need --json, which prints them"};
  }
  if (flags.prompt_ids && (flags.prompt.prompt_given || !flags.prompt.file.empty())) {
    return Error{ErrorCode::kInvalidArgument,
                 "--prompt-ids excludes -p/--prompt and -f/--file: name one of them"};
  }
  return ok();
}

/// Milliseconds with microseconds behind the point.
double to_ms(std::chrono::nanoseconds time) {
  const std::int64_t microseconds = time.count() / 1000;
  return static_cast<double>(microseconds) / 1000.0;
}

double per_second(std::uint32_t n, std::chrono::nanoseconds time) {
  return time.count() > 0 ? n * 1e9 / static_cast<double>(time.count()) : 0.0;
}

/// Tokens after the first: that one came with the prefill.
std::uint32_t n_decoded(const engine::Finish& finish) {
  return finish.n_generated > 0 ? finish.n_generated - 1 : 0;
}

Json probability_json(TokenId id, float logprob) {
  Json out;
  out["id"] = id;
  out["logprob"] = logprob;  // -infinity becomes null: JSON has no other word for it.
  return out;
}

Json token_json(const engine::TokenEvent& event) {
  Json out = probability_json(event.id, event.logprob);
  out["top"] = Json::array();
  for (const auto& top : event.top) out["top"].push_back(probability_json(top.id, top.logprob));
  return out;
}

/// Both ends of each link, one entry each.
Json links_json(const std::vector<rpc::LinkStats>& links) {
  Json out = Json::array();
  for (const rpc::LinkStats& link : links) {
    Json& entry = out.emplace_back();
    entry["from"] = link.from;
    entry["to"] = link.to;
    entry["carries"] = link.carries;
    entry["end"] = link.sends ? "sender" : "receiver";
    entry["transport"] = link.transport;
    for (const rpc::CounterField& field : rpc::counter_fields())
      entry[std::string(field.name)] = link.counters.*field.value;
  }
  return out;
}

Result<void> print_json(const RunFlags& flags, const Backend& backend,
                        const std::vector<TokenId>& prompt, const Answer& answer) {
  const engine::Finish& finish = *answer.finish;
  Json out;
  out["prompt_ids"] = prompt;
  out["ids"] = answer.ids;
  out["text"] = answer.text;
  out["finish_reason"] = engine::to_string(finish.reason);
  if (finish.error) out["error"] = finish.error->message;
  if (flags.n_logprobs) {
    out["logprobs"] = Json::array();
    for (const auto& event : answer.tokens) out["logprobs"].push_back(token_json(event));
  }
  if (flags.n_prompt_logprobs) {
    out["prompt_logprobs"] = Json::array({nullptr});  // Nothing is before the first token.
    for (const auto& event : answer.prompt_tokens)
      out["prompt_logprobs"].push_back(token_json(event));
  }
  Json& timings = out["timings"];
  timings["load_ms"] = to_ms(backend.load_time);
  timings["prefill_ms"] = to_ms(finish.prefill_time);
  timings["decode_ms"] = to_ms(finish.decode_time);
  timings["prefill_tokens_per_second"] = per_second(finish.n_prompt, finish.prefill_time);
  timings["decode_tokens_per_second"] = per_second(n_decoded(finish), finish.decode_time);
  timings["n_prompt"] = finish.n_prompt;
  timings["n_generated"] = finish.n_generated;
  out["backend"] = backend.executor->info().description;
  if (backend.close_cluster) out["links"] = links_json(backend.close_cluster());
  return write_output(out.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

void print_timings(const Backend& backend, const engine::Finish& finish) {
  if (!log_enabled(LogLevel::kWarning)) return;  // --quiet
  fmt::print(stderr,
             "[{}; load {:.0f} ms; prefill {} tokens, {:.1f} tokens/s; decode {} tokens, {:.1f} "
             "tokens/s; {}]\n",
             backend.executor->info().description, to_ms(backend.load_time), finish.n_prompt,
             per_second(finish.n_prompt, finish.prefill_time), finish.n_generated,
             per_second(n_decoded(finish), finish.decode_time), engine::to_string(finish.reason));
}

Result<Prompt> read_prompt(const RunFlags& flags) {
  Prompt prompt;
  if (flags.prompt_ids) {
    RECUA_ASSIGN_OR_RETURN(prompt.ids, parse_token_ids("--prompt-ids", *flags.prompt_ids));
  } else {
    RECUA_ASSIGN_OR_RETURN(prompt.text, flags.prompt.read());
  }
  return prompt;
}

std::vector<TokenId> to_tokens(Prompt prompt, const tokenizer::Tokenizer& tokenizer) {
  if (prompt.ids) return *std::move(prompt.ids);
  std::vector<TokenId> ids = tokenizer.encode(prompt.text);
  // An empty prompt for a vocabulary without BOS: something has to come first.
  if (ids.empty() && tokenizer.bos()) ids.push_back(*tokenizer.bos());
  if (ids.empty() && tokenizer.eos()) ids.push_back(*tokenizer.eos());
  return ids;
}

engine::Request make_request(const RunFlags& flags, const tokenizer::Tokenizer& tokenizer,
                             std::vector<TokenId> prompt,
                             const sampling::SamplingParams& sampling) {
  engine::Request request;
  request.prompt = std::move(prompt);
  if (flags.n_predict >= 0) {
    request.n_predict = static_cast<std::uint32_t>(
        std::min<std::int64_t>(flags.n_predict, std::numeric_limits<std::uint32_t>::max()));
  }
  request.sampling = sampling;
  if (!flags.ignore_eos)
    request.is_end = [&tokenizer](TokenId id) { return tokenizer.is_end_of_generation(id); };
  request.n_top = flags.n_logprobs.value_or(0);
  request.prompt_n_top = flags.n_prompt_logprobs;
  return request;
}

void emit(const RunFlags& flags, Answer& answer, const std::string& text) {
  answer.text += text;
  if (flags.json || text.empty() || !answer.written.ok()) return;
  answer.written = write_output(text);
}

/// Runs the request to its end on the backend's loop. Ctrl-C cancels it, and so does a text that
/// cannot be written.
Result<Answer> generate(const RunFlags& flags, Backend& backend, engine::Request request) {
  engine::Engine engine(backend.loop.get_executor(), backend.clock, *backend.executor);
  Answer answer;
  // Token by token: unlike in a whole text, a space behind a control token is the model's word.
  tokenizer::Utf8Stream characters;
  engine::RequestId id = 0;
  engine::RequestCallbacks callbacks;
  callbacks.on_token = [&](engine::TokenEvent&& event) {
    if (event.is_prompt) {
      answer.prompt_tokens.push_back(std::move(event));
      return;
    }
    answer.ids.push_back(event.id);
    emit(flags, answer, characters.push(backend.tokenizer->piece(event.id, false)));
    if (flags.n_logprobs) answer.tokens.push_back(std::move(event));
    if (!answer.written.ok()) engine.cancel(id);
  };
  callbacks.on_finish = [&](engine::Finish&& finish) { answer.finish = std::move(finish); };
  RECUA_ASSIGN_OR_RETURN(id, engine.submit(std::move(request), std::move(callbacks)));
  const Interrupt interrupt(backend.loop, [&engine, id] { engine.cancel(id); });
  backend.loop.restart();
  while (!answer.finish) RECUA_CHECK(backend.loop.run_one() > 0);
  emit(flags, answer, characters.flush());
  return answer;
}

int run(RunFlags& flags) {
  if (const auto checked = check(flags); !checked.ok()) return report(checked.error());
  const auto sampling = flags.sampling.check();
  if (!sampling.ok()) return report(sampling.error());
  // What can be wrong without the model is said before it is loaded.
  if (const auto checked = flags.backend.check(); !checked.ok()) return report(checked.error());
  auto read = read_prompt(flags);
  if (!read.ok()) return report(read.error());
  std::vector<TokenId> prompt;
  BackendNeeds needs;
  needs.before_load = [&](const tokenizer::Tokenizer& tokenizer) -> Result<void> {
    prompt = to_tokens(std::move(*read), tokenizer);
    return ok();
  };
  auto opened = open_backend(flags.backend, needs);
  if (!opened.ok()) return report(opened.error());
  Backend& backend = **opened;
  if (flags.echo && !flags.json) {
    const auto written = write_output(backend.tokenizer->decode(prompt));
    if (!written.ok()) return report(written.error());
  }
  engine::Request request = make_request(flags, *backend.tokenizer, prompt, *sampling);
  const auto answer = generate(flags, backend, std::move(request));
  if (!answer.ok()) return report(answer.error());
  const engine::Finish& finish = *answer->finish;
  Result<void> written = answer->written;
  if (written.ok()) {
    written = flags.json ? print_json(flags, backend, prompt, *answer) : write_output("\n");
  }
  if (finish.error) return report(*finish.error);
  if (!written.ok()) return report(written.error());
  if (!flags.json) print_timings(backend, finish);
  if (finish.reason == engine::FinishReason::kCancelled) return kExitInterrupted;
  return kExitOk;
}

}  // namespace

void register_run(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("run", "Generate text from a prompt");
  const auto flags = std::make_shared<RunFlags>();
  flags->prompt.add(*sub);
  sub->add_option("-n,--n-predict,--predict", flags->n_predict,
                  "Most tokens to generate; -1: as many as the context holds")
      ->capture_default_str()
      ->type_name("N");
  flags->backend.add(*sub);
  flags->sampling.add(*sub);
  sub->add_option_function<std::string>(
         "--prompt-ids", [flags](const std::string& ids) { flags->prompt_ids = ids; },
         "Token ids instead of a text")
      ->type_name("ID,...");
  sub->add_flag("--ignore-eos", flags->ignore_eos,
                "Go on behind a token that ends the text, instead of stopping there");
  sub->add_flag("--echo", flags->echo, "Print the prompt first");
  sub->add_flag("--no-display-prompt", flags->no_display_prompt,
                "Accepted for habit: the prompt is not printed anyway");
  sub->add_flag("--json", flags->json, "Print one JSON object at the end instead of the text");
  sub->add_option("--logprobs", flags->n_logprobs,
                  "With --json: log-probabilities of the generated tokens and the K best of each")
      ->type_name("K");
  sub->add_option("--prompt-logprobs", flags->n_prompt_logprobs,
                  "With --json: the same for the prompt")
      ->type_name("K");
  sub->footer(
      "The text goes to standard output, one line of timings to standard error.\n"
      "Ctrl-C ends the text and exits with 130; a second one ends the program at once.\n\n"
      "Examples:\n"
      "  recua run -m model.gguf -p \"Once upon a time\" -n 64\n"
      "  recua run -m model.gguf -f prompt.txt --temp 0\n"
      "  echo \"Once upon a time\" | recua run -m model.gguf -n 64 --seed 1\n"
      "  recua run -m model.gguf --local-workers 2 -p \"Hello\"\n"
      "  recua run -m model.gguf --workers 10.0.0.5:7500,[fd00::6]:7500 --split 2,1 -p \"Hello\"\n"
      "  recua run -m model.gguf --prompt-ids 1,403,407 --json --logprobs 5 -n 16");
  sub->callback([flags, &exit_code] { exit_code = run(*flags); });
}

}  // namespace recua::cli
