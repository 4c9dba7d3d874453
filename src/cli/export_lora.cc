// recua export-lora: a model and an adapter as one model.
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "cli/units.h"
#include "model/lora.h"
#include "model/merge_lora.h"
#include "sys/topology.h"

namespace recua::cli {
namespace {

struct ExportLoraFlags {
  std::string model;
  LoraFlags lora;
  std::string out;
  std::uint32_t n_threads = 0;  // 0: one per core.
  bool json = false;
};

Result<void> check(ExportLoraFlags& flags) {
  if (flags.model.empty()) return missing("-m/--model", "the GGUF file that was adapted");
  if (!flags.lora.any()) return missing("--lora", "the adapter to merge into it");
  if (flags.out.empty()) return missing("-o/--out", "the GGUF file to write");
  RECUA_RETURN_IF_ERROR(flags.lora.check());
  std::error_code ignored;
  for (const std::string& input : {flags.model, flags.lora.path}) {
    if (!std::filesystem::equivalent(input, flags.out, ignored)) continue;
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--out is the same file as the input {}; it must be another", input)};
  }
  if (flags.n_threads > 1024) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--threads is {}, must be from 0 to 1024", flags.n_threads)};
  }
  return ok();
}

Result<void> export_lora(ExportLoraFlags& flags) {
  RECUA_RETURN_IF_ERROR(check(flags));
  const auto start = std::chrono::steady_clock::now();
  RECUA_ASSIGN_OR_RETURN(gguf::GgufFile file, gguf::GgufFile::open(flags.model));
  RECUA_ASSIGN_OR_RETURN(const model::HyperParams hp, model::read_hyperparams(file));
  RECUA_RETURN_IF_ERROR(model::add_lora(file, hp, flags.lora.path, flags.lora.scale));
  const std::size_t n_threads =
      flags.n_threads != 0 ? flags.n_threads : sys::default_thread_count(sys::detect_topology());
  ProgressBar bar("merging", ProgressBar::Unit::kCount);
  RECUA_ASSIGN_OR_RETURN(
      const model::MergeResult result,
      model::write_merged(file, flags.out, n_threads, [&bar](std::size_t done, std::size_t total) {
        bar.update(done, total, "tensors");
      }));
  bar.finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (flags.json) {
    nlohmann::ordered_json out;
    out["output"] = flags.out;
    out["merged"] = result.n_merged;
    out["bytes"] = result.n_bytes;
    out["seconds"] = seconds;
    fmt::print("{}\n", out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    fmt::print("{}: {} matrices merged, in F32; {}, {:.1f} s\n", flags.out, result.n_merged,
               human_bytes(result.n_bytes), seconds);
  }
  return ok();
}

}  // namespace

void register_export_lora(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("export-lora", "Merge an adapter into its model");
  const auto flags = std::make_shared<ExportLoraFlags>();
  sub->add_option("-m,--model", flags->model, "The model that was adapted")->type_name("FILE");
  flags->lora.add(*sub);
  sub->add_option("-o,--out", flags->out, "The GGUF file to write; appears when it is complete")
      ->type_name("FILE");
  sub->add_option("-t,--threads", flags->n_threads,
                  "Threads to compute with (default: one per core)");
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(
      "The matrices that the adapter changes are written in F32, all others as they are.\n\n"
      "Examples:\n"
      "  recua export-lora -m base.gguf --lora adapter.gguf -o merged.gguf\n"
      "  recua export-lora -m base.gguf --lora adapter.gguf:0.5 -o half.gguf\n"
      "  recua quantize merged.gguf merged-q8_0.gguf Q8_0");
  sub->callback([flags, &exit_code] {
    const auto result = export_lora(*flags);
    exit_code = result.ok() ? kExitOk : report(result.error());
  });
}

}  // namespace recua::cli
