// Another type for the weights of a model.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/quantize_model.h"
#include "cli/units.h"
#include "gguf/gguf_file.h"
#include "sys/topology.h"

namespace recua::cli {
namespace {

constexpr std::uint32_t kThreadsMax = 1024;

struct QuantizeFlags {
  std::string input;
  std::string output;
  std::string type;
  std::uint32_t n_threads = 0;  // 0: one per core.
  bool pure = false;
  bool dry_run = false;
  bool json = false;
  bool allow_requantize = false;
};

std::string all_types() {
  std::string out;
  for (const QuantizeMix& mix : quantize_mixes()) {
    if (!out.empty()) out += ' ';
    out += mix.name;
  }
  return out;
}

std::string types_help() {
  std::string out = "Types, by size:\n";
  for (const QuantizeMix& mix : quantize_mixes()) {
    out += fmt::format("  {:7} {}\n", mix.name, mix.about);
  }
  return out;
}

struct Totals {
  std::uint64_t bytes_before = 0;
  std::uint64_t bytes_after = 0;
  std::uint64_t n_weights = 0;
  std::uint64_t n_fell_back = 0;
  std::uint64_t n_requantized = 0;  // From an already quantized type to another.
  std::map<std::string_view, std::uint64_t> n_tensors;

  [[nodiscard]] double bits_per_weight() const {
    return n_weights == 0 ? 0.0
                          : 8.0 * static_cast<double>(bytes_after) / static_cast<double>(n_weights);
  }
};

Totals sum_up(std::span<const TensorPlan> plan) {
  Totals out;
  for (const TensorPlan& item : plan) {
    out.bytes_before += item.tensor->n_bytes;
    out.bytes_after += item.n_bytes();
    out.n_weights += item.tensor->n_elements;
    if (item.fell_back) ++out.n_fell_back;
    const bool was_quantized = quant::traits(item.tensor->type).block_size > 1;
    if (was_quantized && item.type != item.tensor->type) ++out.n_requantized;
    ++out.n_tensors[quant::traits(item.type).name];
  }
  return out;
}

void print_plan(std::span<const TensorPlan> plan) {
  for (const TensorPlan& item : plan) {
    fmt::print("{:44} {:>22}  {:4} -> {:4}{}\n", gguf::quoted(item.tensor->name),
               item.tensor->shape_text(), quant::traits(item.tensor->type).name,
               quant::traits(item.type).name,
               item.fell_back ? "  (rows do not fit the mix's type)" : "");
  }
}

void print_result(const QuantizeFlags& flags, const QuantizeMix& mix, const Totals& totals,
                  double seconds) {
  if (flags.json) {
    nlohmann::ordered_json out;
    out["input"] = flags.input;
    out["output"] = flags.output;
    out["type"] = mix.name;
    out["dry_run"] = flags.dry_run;
    out["tensor_bytes_before"] = totals.bytes_before;
    out["tensor_bytes_after"] = totals.bytes_after;
    out["n_weights"] = totals.n_weights;
    out["bits_per_weight"] = totals.bits_per_weight();
    out["n_fell_back"] = totals.n_fell_back;
    out["tensors"] = nlohmann::ordered_json::object();
    for (const auto& [type, n] : totals.n_tensors) out["tensors"][std::string(type)] = n;
    out["seconds"] = seconds;
    fmt::print("{}\n", out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return;
  }
  fmt::print("{}: {} weights as {}, {} -> {}, {:.2f} bits per weight", flags.output,
             human_count(totals.n_weights), mix.name, human_bytes(totals.bytes_before),
             human_bytes(totals.bytes_after), totals.bits_per_weight());
  if (flags.dry_run) {
    fmt::print(" (not written)\n");
  } else {
    fmt::print(", {:.1f} s\n", seconds);
  }
}

Result<QuantizeMix> check(const QuantizeFlags& flags) {
  if (flags.input.empty()) return missing("IN", "the model to quantize");
  if (flags.output.empty()) return missing("OUT", "the file to write");
  if (flags.type.empty()) return missing("TYPE", fmt::format("one of {}", all_types()));
  const auto mix = find_mix(flags.type);
  if (!mix) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("TYPE {} is not known; must be one of {}",
                                                          gguf::quoted(flags.type), all_types())};
  }
  if (flags.n_threads > kThreadsMax) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("-t/--threads is {}, must be at most {}",
                                                          flags.n_threads, kThreadsMax)};
  }
  std::error_code ignored;
  if (std::filesystem::equivalent(flags.input, flags.output, ignored)) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("OUT is the same file as IN ({}); it must be another", flags.input)};
  }
  return *mix;
}

Result<void> quantize(const QuantizeFlags& flags) {
  RECUA_ASSIGN_OR_RETURN(const QuantizeMix mix, check(flags));
  RECUA_ASSIGN_OR_RETURN(const gguf::GgufFile file, gguf::GgufFile::open(flags.input));
  const std::vector<TensorPlan> plan = plan_types(file, mix, flags.pure);
  const Totals totals = sum_up(plan);
  if (totals.n_requantized > 0 && !flags.allow_requantize) {
    log_warning(
        "{} of the tensors of {} are quantized already: doing it again loses more than starting "
        "from "
        "an F16 or F32 file (--allow-requantize silences this)",
        totals.n_requantized, flags.input);
  }
  if (totals.n_fell_back > 0) {
    log_warning(
        "{} tensors have rows that are not whole blocks of the type that {} asks for, and take "
        "another one (--dry-run lists them)",
        totals.n_fell_back, mix.name);
  }
  const auto start = std::chrono::steady_clock::now();
  if (flags.dry_run) {
    if (!flags.json) print_plan(plan);
  } else {
    const std::size_t n_threads =
        flags.n_threads != 0 ? flags.n_threads : sys::default_thread_count(sys::detect_topology());
    ProgressBar bar(fmt::format("quantizing to {}", mix.name));
    RECUA_RETURN_IF_ERROR(quantize_model(
        file, plan, mix, flags.output, n_threads,
        [&bar](std::uint64_t done, std::uint64_t total, std::string_view tensor_name) {
          bar.update(done, total, gguf::quoted(tensor_name));
        }));
    bar.finish();
  }
  print_result(flags, mix, totals,
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return ok();
}

}  // namespace

void register_quantize(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("quantize", "Write a model again with other weight types");
  const auto flags = std::make_shared<QuantizeFlags>();
  sub->add_option("IN", flags->input, "The model, best in F16, BF16 or F32");
  sub->add_option("OUT", flags->output, "The file to write; appears when it is complete");
  sub->add_option("TYPE", flags->type, "A type or mix, see below");
  sub->add_option("-t,--threads", flags->n_threads,
                  "Threads to compute with (default: one per core)");
  sub->add_flag("--pure", flags->pure,
                "The same type for all matrices, without the mix's exceptions");
  sub->add_flag("--allow-requantize", flags->allow_requantize,
                "Do not warn when the input is quantized already");
  sub->add_flag("--dry-run", flags->dry_run, "Only print which tensor would get which type");
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(types_help() +
              "\nExamples:\n"
              "  recua quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M\n"
              "  recua quantize model-f16.gguf model-q8_0.gguf Q8_0 -t 8\n"
              "  recua quantize model-f16.gguf out.gguf Q3_K_M --dry-run");
  sub->callback([flags, &exit_code] {
    const auto result = quantize(*flags);
    exit_code = result.ok() ? kExitOk : report(result.error());
  });
}

}  // namespace recua::cli
