// A model with random weights and a real shape.
#include <chrono>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/synth_model.h"
#include "cli/units.h"
#include "gguf/value.h"

namespace recua::cli {
namespace {

struct SynthFlags {
  SynthSpec spec;
  std::string output;
  std::string type = "Q4_K_M";
  bool json = false;
};

Result<void> synth(const SynthFlags& flags) {
  if (flags.output.empty()) return missing("OUT", "the file to write");
  const auto mix = find_mix(flags.type);
  if (!mix) {
    std::string all;
    for (const QuantizeMix& each : quantize_mixes()) all += fmt::format(" {}", each.name);
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--type is {}, must be one of{}", gguf::quoted(flags.type), all)};
  }
  RECUA_RETURN_IF_ERROR(check_spec(flags.spec));
  const auto start = std::chrono::steady_clock::now();
  ProgressBar bar(fmt::format("writing {}", flags.output));
  RECUA_ASSIGN_OR_RETURN(const SynthResult result,
                         write_synth_model(flags.spec, *mix, flags.output,
                                           [&bar](std::uint64_t done, std::uint64_t total,
                                                  std::string_view) { bar.update(done, total); }));
  bar.finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (flags.json) {
    nlohmann::ordered_json out;
    out["output"] = flags.output;
    out["type"] = mix->name;
    out["n_weights"] = result.n_weights;
    out["file_bytes"] = result.n_bytes;
    out["seconds"] = seconds;
    fmt::print("{}\n", out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    fmt::print("{}: {} random weights as {}, {}, {:.1f} s\n", flags.output,
               human_count(result.n_weights), mix->name, human_bytes(result.n_bytes), seconds);
  }
  return ok();
}

}  // namespace

void register_synth(CLI::App& app, int& exit_code) {
  auto* const sub =
      app.add_subcommand("synth", "Write a model of a given shape with random weights");
  const auto flags = std::make_shared<SynthFlags>();
  SynthSpec& spec = flags->spec;
  sub->add_option("OUT", flags->output, "The file to write; appears when it is complete");
  sub->add_option("--arch", spec.arch, "llama, qwen2, qwen3 or qwen3moe")->capture_default_str();
  sub->add_option("--layers", spec.n_layers, "Layers")->capture_default_str();
  sub->add_option("--dim", spec.hidden_size, "Size of a token's vector")->capture_default_str();
  sub->add_option("--ffn", spec.ffn_size, "Size inside the feed-forward part (of each expert)")
      ->capture_default_str();
  sub->add_option("--heads", spec.n_heads, "Attention heads")->capture_default_str();
  sub->add_option("--kv-heads", spec.n_kv_heads, "Heads of keys and values")->capture_default_str();
  sub->add_option("--head-dim", spec.head_dim, "Size of a head (default: --dim / --heads)");
  sub->add_option("--vocab", spec.vocab_size, "Tokens in the vocabulary")->capture_default_str();
  sub->add_option("--ctx", spec.n_ctx, "Context length that the file claims")
      ->capture_default_str();
  sub->add_option("--experts", spec.n_experts, "Experts per layer; 0: none")->capture_default_str();
  sub->add_option("--experts-used", spec.n_experts_used, "Experts that each token uses")
      ->capture_default_str();
  sub->add_option("--rope-theta", spec.rope_theta, "Base of the rotary frequencies")
      ->capture_default_str();
  sub->add_option("--type", flags->type, "Type or mix, as of recua quantize")
      ->capture_default_str();
  sub->add_flag("--tied", spec.tied, "The embedding is the output matrix too");
  sub->add_option("--seed", spec.seed, "Another seed gives other weights")->capture_default_str();
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(
      "Examples:\n"
      "  recua synth small.gguf --layers 4 --dim 256 --ffn 768 --heads 8 --kv-heads 4 --vocab 512\n"
      "  recua synth 1b.gguf --layers 16 --dim 2048 --ffn 8192 --heads 32 --kv-heads 8 \\\n"
      "      --vocab 128256 --rope-theta 500000 --tied --type Q4_K_M\n"
      "  recua synth moe.gguf --layers 8 --dim 1024 --ffn 768 --experts 16 --experts-used 4");
  sub->callback([flags, &exit_code] {
    const auto result = synth(*flags);
    exit_code = result.ok() ? kExitOk : report(result.error());
  });
}

}  // namespace recua::cli
