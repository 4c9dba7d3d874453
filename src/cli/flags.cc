#include "cli/flags.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <optional>
#include <random>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/mapped_file.h"
#include "cli/plan_choice.h"
#include "cluster/plan.h"
#include "kernels/attention.h"

namespace recua::cli {
namespace {

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

/// The whole of text as a number, or nullopt.
template <class T>
std::optional<T> to_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<std::string_view> split_at_commas(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

Result<void> check_range(std::string_view flag, double value, double least, double most) {
  if (value >= least && value <= most) return ok();  // False for NaN.
  return invalid(fmt::format("{} is {}, need a number from {} to {}", flag, value, least, most));
}

}  // namespace

void ModelFlags::add(CLI::App& app, bool with_ctx) {
  app.add_option("-m,--model", model, "GGUF file to use (any part of a split one)")
      ->type_name("FILE");
  add_sizes(app, with_ctx);
  cpus.add(app);
  app.add_flag_callback(
      "--no-memory-check", [this] { memory_check = false; },
      "Load a model even if it does not fit into the free memory");
}

void ModelFlags::add_sizes(CLI::App& app, bool with_ctx) {
  if (with_ctx) {
    app.add_option_function<std::uint32_t>(
           "-c,--ctx-size",
           [this](const std::uint32_t& value) {
             n_ctx = value;
             ctx_given = true;
           },
           "Longest sequence in tokens; 0: as long as the model was made for (default: that, at "
           "most 4096)")
        ->type_name("N");
  }
  app.add_option("-t,--threads", n_threads, "Threads to compute with (default: one per core)")
      ->type_name("N");
  app.add_option("-b,--batch-size", n_batch, "Most tokens of one step")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--ubatch-size", n_ubatch, "Most tokens computed at once; also -ub")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--cache-type-k", k_type,
                 "Type of the cached keys: f16, f32, q8_0 or q4_0; also -ctk")
      ->capture_default_str()
      ->type_name("TYPE");
  app.add_option("--cache-type-v", v_type,
                 "Type of the cached values: f16, f32, q8_0 or q4_0; also -ctv")
      ->capture_default_str()
      ->type_name("TYPE");
  add_no_repack(app, repack);
}

Result<void> ModelFlags::check() const {
  if (model.empty())
    return invalid("-m/--model is missing: the GGUF file to use, such as -m model.gguf");
  RECUA_RETURN_IF_ERROR(check_range("-t/--threads", n_threads, 0, 1024));
  RECUA_RETURN_IF_ERROR(check_range("-b/--batch-size", n_batch, 1, 1 << 20));
  RECUA_RETURN_IF_ERROR(check_range("-ub/--ubatch-size", n_ubatch, 1, 1 << 16));
  RECUA_RETURN_IF_ERROR(check_range("-c/--ctx-size", n_ctx, 0, 1 << 28));
  RECUA_RETURN_IF_ERROR(parse_cache_type("-ctk/--cache-type-k", k_type));
  RECUA_RETURN_IF_ERROR(parse_cache_type("-ctv/--cache-type-v", v_type));
  return ok();
}

void add_no_repack(CLI::App& app, bool& repack) {
  app.add_flag_callback(
      "--no-repack", [&repack] { repack = false; },
      "Compute with weights where they are mapped, instead of copying them into a faster layout; "
      "also -nr");
}

Result<quant::DataType> parse_cache_type(std::string_view flag, std::string_view text) {
  const auto type = quant::data_type_from_name(text);
  if (type && kernels::is_cache_type(*type)) return *type;
  return invalid(fmt::format("{} is '{}', need f16, f32, q8_0 or q4_0", flag, text));
}

void LoraFlags::add(CLI::App& app) {
  app.add_option("--lora", text, "Adapter for the model (GGUF), with how strongly it acts (1)")
      ->type_name("FILE[:SCALE]");
}

Result<void> LoraFlags::check() {
  path = text;
  scale = 1.0F;
  const std::size_t colon = text.rfind(':');
  std::error_code ignored;
  if (colon == std::string::npos || std::filesystem::exists(text, ignored)) return ok();
  const std::string_view tail = std::string_view(text).substr(colon + 1);
  const std::optional<float> number = to_number<float>(tail);
  if (!number || !std::isfinite(*number) || colon == 0) {
    return invalid(
        fmt::format("--lora is '{}', need FILE or FILE:SCALE, where SCALE is a number "
                    "such as 0.5",
                    text));
  }
  path = text.substr(0, colon);
  scale = *number;
  return ok();
}

void ClusterFlags::add(CLI::App& app, bool with_plan) {
  app.add_option("--workers", workers_text,
                 "Spread the model over these machines, where `recua worker` runs")
      ->type_name("HOST:PORT,...");
  app.add_option("--local-workers", n_local_workers,
                 "Start this many workers on this machine, and stop them at the end")
      ->type_name("N");
  app.add_option("--split", split_text,
                 "How many layers each worker gets, as proportions (default: by free memory)")
      ->type_name("A,B,...");
  if (with_plan) {
    app.add_option("--tp", n_ranks,
                   "So many consecutive workers share their layers, each with a part of every "
                   "matrix (tensor parallelism); --split then gives their shares")
        ->type_name("N");
    app.add_option("--pp", n_stages,
                   "So many stages of layers (pipeline parallelism); the workers of each share "
                   "them, as by --tp")
        ->type_name("N");
    app.add_option("--plan", plan_file,
                   "Spread the model as this file of `recua plan --save` says; without --workers, "
                   "over the machines that it names. auto (the default): as `recua plan` would "
                   "choose for them, perhaps without some; layers: some layers for each, by its "
                   "free memory")
        ->type_name("FILE");
  }
  app.add_flag_callback(
      "--no-fetch", [this] { fetch = false; },
      "Fail rather than send weights to a worker that lacks them");
  app.add_flag("--verify", verify, "Let the workers hash their weights again");
  app.add_option(
         "--sum-type", sum_type,
         "How workers that share layers send each other their sums: f32, or rounded to f16, "
         "bf16 or i8 for slow networks")
      ->capture_default_str()
      ->type_name("TYPE");
  app.add_option("--worker-timeout", timeout_seconds, "Seconds to wait for a worker to answer")
      ->capture_default_str()
      ->type_name("SECONDS");
}

/// What would only fail once everything is loaded: workers reach each other by these addresses.
Result<void> check_worker_list(std::string_view where, std::vector<net::Endpoint>& workers) {
  for (net::Endpoint& worker : workers) {
    if (worker.host.empty()) worker.host = "127.0.0.1";
    if (worker.port == 0) {
      return invalid(fmt::format("{}: {} needs the port that the worker listens on, such as {}",
                                 where, worker.to_string(), kDefaultWorkerPort));
    }
    if (std::count(workers.begin(), workers.end(), worker) > 1)
      return invalid(fmt::format("{} names {} twice", where, worker.to_string()));
  }
  for (std::size_t i = 1; i < workers.size(); ++i) {
    if (is_loopback(workers[i].host) && !is_loopback(workers[i - 1].host)) {
      return invalid(fmt::format(
          "{}: {} has to reach {}, which means itself: name this machine by an address that "
          "others can reach, or put it first",
          where, workers[i - 1].to_string(), workers[i].to_string()));
    }
  }
  return ok();
}

bool is_loopback(std::string_view host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

/// Stages and ranks of each multiply to the workers, so one follows from the other.
Result<void> ClusterFlags::check_stages() {
  const std::size_t n_workers = workers.empty() ? n_local_workers : workers.size();
  if (n_workers == 0) return invalid("--pp needs --workers or --local-workers");
  if (*n_stages == 0 || n_workers % *n_stages != 0) {
    return invalid(
        fmt::format("--pp {} makes no equal stages of {} workers, need a number that divides them",
                    *n_stages, n_workers));
  }
  const auto n_each = static_cast<std::uint32_t>(n_workers / *n_stages);
  if (n_ranks != 1 && n_ranks != n_each) {
    return invalid(
        fmt::format("--pp {} and --tp {} make {} workers, there are {}: leave one of the two away",
                    *n_stages, n_ranks, std::uint64_t{*n_stages} * n_ranks, n_workers));
  }
  n_ranks = n_each;
  return check_range("workers of a stage", n_ranks, 1, cluster::kRanksMax);
}

bool ClusterFlags::is_plan_named() const {
  return !plan_file.empty() && plan_file != kPlanAuto && plan_file != kPlanLayers;
}

Result<void> ClusterFlags::check() {
  workers.clear();
  split.clear();
  slices.clear();
  if (!workers_text.empty() && n_local_workers > 0)
    return invalid("--workers and --local-workers exclude each other: name one of them");
  if (!plan_file.empty() &&
      (n_ranks != 1 || n_stages.has_value() || !split_text.empty() || n_local_workers > 0)) {
    return invalid(
        "--plan gives the whole plan and names its workers: leave --tp, --pp, --split and "
        "--local-workers away");
  }
  if (!plan_file.empty() && !is_plan_named() && workers_text.empty())
    return invalid(fmt::format("--plan {} is for workers: name them by --workers", plan_file));
  RECUA_RETURN_IF_ERROR(check_range("--local-workers", n_local_workers, 0, 64));
  RECUA_RETURN_IF_ERROR(check_range("--worker-timeout", timeout_seconds, 0.001, 86400));
  RECUA_RETURN_IF_ERROR(check_range("--tp", n_ranks, 1, cluster::kRanksMax));
  const auto format = collective::wire_format_from_name(sum_type);
  if (!format)
    return invalid(fmt::format("--sum-type is '{}', need f32, f16, bf16 or i8", sum_type));
  sums = *format;
  if (!workers_text.empty()) {
    for (const std::string_view part : split_at_commas(workers_text)) {
      if (part.empty()) {
        return invalid(
            fmt::format("--workers is '{}', need HOST:PORT,... without empty parts", workers_text));
      }
      auto endpoint = net::Endpoint::parse(part, kDefaultWorkerPort);
      if (!endpoint.ok()) return std::move(endpoint).error().within("--workers");
      workers.push_back(std::move(endpoint).value());
    }
    RECUA_RETURN_IF_ERROR(check_worker_list("--workers", workers));
  }
  if (n_stages.has_value()) RECUA_RETURN_IF_ERROR(check_stages());
  if (n_ranks > 1) {
    const std::size_t n_workers = workers.empty() ? n_local_workers : workers.size();
    if (n_workers == 0) return invalid("--tp needs --workers or --local-workers");
    if (n_workers % n_ranks != 0) {
      return invalid(
          fmt::format("--tp {} makes no whole groups of {} workers, need a multiple of {}", n_ranks,
                      n_workers, n_ranks));
    }
  }
  if (!split_text.empty()) {
    RECUA_ASSIGN_OR_RETURN(split, parse_counts("--split", split_text, 100000));
    const std::size_t n_workers = workers.empty() ? n_local_workers : workers.size();
    if (n_workers == 0) return invalid("--split needs --workers or --local-workers");
    // Of groups: how many layers; within the only group: how much of each layer.
    const bool of_groups = n_ranks > 1 && n_workers > n_ranks;
    const std::size_t n_parts = of_groups ? n_workers / n_ranks : n_workers;
    if (split.size() != n_parts) {
      return invalid(fmt::format("--split names {} shares for {} {}, need one for each",
                                 split.size(), n_parts, of_groups ? "groups" : "workers"));
    }
    if (std::all_of(split.begin(), split.end(), [](std::uint32_t share) { return share == 0; }))
      return invalid("--split gives no worker any layer");
  }
  return ok();
}

void SamplingFlags::add(CLI::App& app) {
  const auto number = [&app](const char* name, auto& value, const char* what) {
    app.add_option(name, value, what)->capture_default_str()->type_name("N");
  };
  number("--temp", params.temperature, "Temperature; 0 takes the most probable token");
  number("--top-k", params.top_k, "Only the k most probable tokens; 0: off");
  number("--top-p", params.top_p, "Only the most probable tokens that make up p; 1: off");
  number("--min-p", params.min_p, "Only tokens at least p times as probable as the best; 0: off");
  number("--typical", params.typical_p, "Locally typical tokens that make up p; 1: off");
  number("--repeat-penalty", params.repeat_penalty, "Divides logits of recent tokens; 1: off");
  number("--repeat-last-n", params.repeat_last_n,
         "How many tokens the penalties look at; 0: none, -1: all");
  number("--presence-penalty", params.presence_penalty, "Taken off tokens that occurred; 0: off");
  number("--frequency-penalty", params.frequency_penalty,
         "Taken off tokens for each time they occurred; 0: off");
  app.add_option("--logit-bias", logit_bias,
                 "Add to the logit of a token, such as 15043+1 or 29871-inf; may be repeated")
      ->type_name("ID(+/-)BIAS")
      ->allow_extra_args(false);
  app.add_option("-s,--seed", seed, "Seed of the random choice; -1: another one each time")
      ->capture_default_str()
      ->type_name("N");
}

Result<sampling::SamplingParams> SamplingFlags::check() const {
  sampling::SamplingParams out = params;
  RECUA_RETURN_IF_ERROR(check_range("--temp", out.temperature, -1e6, 1e6));
  RECUA_RETURN_IF_ERROR(check_range("--top-p", out.top_p, 0, 1));
  RECUA_RETURN_IF_ERROR(check_range("--min-p", out.min_p, 0, 1));
  RECUA_RETURN_IF_ERROR(check_range("--typical", out.typical_p, 0, 1));
  RECUA_RETURN_IF_ERROR(check_range("--repeat-penalty", out.repeat_penalty, 1e-3, 1e3));
  RECUA_RETURN_IF_ERROR(check_range("--repeat-last-n", out.repeat_last_n, -1, 1 << 28));
  RECUA_RETURN_IF_ERROR(check_range("--presence-penalty", out.presence_penalty, -1e3, 1e3));
  RECUA_RETURN_IF_ERROR(check_range("--frequency-penalty", out.frequency_penalty, -1e3, 1e3));
  for (const std::string& text : logit_bias) {
    RECUA_ASSIGN_OR_RETURN(const sampling::LogitBias bias, parse_logit_bias(text));
    out.logit_bias.push_back(bias);
  }
  if (seed < -1) {
    return invalid(fmt::format(
        "-s/--seed is {}, need a number from 0, or -1 for another one each time", seed));
  }
  if (seed >= 0) {
    out.seed = static_cast<std::uint64_t>(seed);
  } else {
    std::random_device device;
    out.seed = (static_cast<std::uint64_t>(device()) << 32) | device();
  }
  return out;
}

Result<sampling::LogitBias> parse_logit_bias(std::string_view text) {
  const std::size_t sign = text.find_first_of("+-");
  const std::string what = fmt::format(
      "--logit-bias is '{}', need ID+BIAS or ID-BIAS such as 15043+1 or 29871-inf", text);
  if (sign == std::string_view::npos) return invalid(what);
  const auto id = to_number<TokenId>(text.substr(0, sign));
  const std::string_view amount = text.substr(sign + 1);
  const auto bias = to_number<float>(amount);  // Knows "inf" too.
  if (!id || *id < 0 || !bias || std::isnan(*bias) || amount.starts_with('-')) return invalid(what);
  return sampling::LogitBias{.id = *id, .bias = text[sign] == '-' ? -*bias : *bias};
}

Result<std::vector<TokenId>> parse_token_ids(std::string_view flag, std::string_view text) {
  std::vector<TokenId> ids;
  for (const std::string_view part : split_at_commas(text)) {
    const auto id = to_number<TokenId>(part);
    if (!id || *id < 0) {
      return invalid(fmt::format("{}: '{}' is not a token id, need numbers such as 1,15043,29892",
                                 flag, part));
    }
    ids.push_back(*id);
  }
  return ids;
}

Result<std::vector<std::uint32_t>> parse_counts(std::string_view flag, std::string_view text,
                                                std::uint32_t value_max) {
  std::vector<std::uint32_t> counts;
  for (const std::string_view part : split_at_commas(text)) {
    const auto count = to_number<std::uint32_t>(part);
    if (!count || *count > value_max) {
      return invalid(
          fmt::format("{}: '{}' is not a whole number from 0 to {}", flag, part, value_max));
    }
    counts.push_back(*count);
  }
  return counts;
}

void PromptFlags::add(CLI::App& app) {
  app.add_option_function<std::string>(
         "-p,--prompt",
         [this](const std::string& text) {
           prompt = text;
           prompt_given = true;
         },
         "Text to go on from (default: standard input, if it is not a terminal)")
      ->type_name("TEXT");
  app.add_option("-f,--file", file, "File that holds the text, byte for byte")->type_name("FILE");
}

Result<std::string> PromptFlags::read() const {
  if (prompt_given && !file.empty())
    return invalid("-p/--prompt and -f/--file exclude each other: name one of them");
  if (prompt_given) return prompt;
  if (!file.empty()) return read_file(file, kPromptBytesMax);
  if (::isatty(STDIN_FILENO) != 0)
    return invalid("no text: give it by -p TEXT, by -f FILE or on standard input");
  return read_standard_input(kPromptBytesMax);
}

Result<std::string> read_standard_input(std::size_t bytes_max) {
  std::string text;
  std::array<char, 1 << 16> chunk{};
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, chunk.data(), chunk.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      return Error{ErrorCode::kIo, fmt::format("standard input: {}", std::strerror(errno))};
    if (n == 0) return text;
    text.append(chunk.data(), static_cast<std::size_t>(n));
    if (text.size() > bytes_max) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("standard input holds more than {} bytes", bytes_max)};
    }
  }
}

}  // namespace recua::cli
