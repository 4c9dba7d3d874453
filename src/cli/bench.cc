// recua bench: tokens per second, measured on the executor itself, without tokenizer and engine.
//
// Sequences of one length, as a rule one. Their first n_depth tokens are cached once per test; each
// repetition appends to them and is truncated again. Tokens are random, from a fixed seed. Every
// step asks for one greedy token (the last row of a prompt, each row of a generation), as real use
// does.

#include <chrono>
#include <ctime>
#include <map>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/chrono.h>
#include <fmt/format.h>

#include "base/log.h"
#include "cli/backend.h"
#include "cli/bench_limits.h"
#include "cli/bench_report.h"
#include "cli/bench_sequences.h"
#include "cli/build_info.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "cluster/model_shape.h"
#include "model/hyperparams.h"

namespace recua::cli {
namespace {

constexpr std::uint32_t kTokensMax = 1U << 24;
constexpr std::uint32_t kParallelMax = 256;

struct BenchFlags {
  BackendFlags backend;
  std::string n_prompt = "512";
  std::string n_gen = "128";
  std::string n_depth = "0";
  std::vector<std::string> prompt_gen;
  std::uint32_t n_repetitions = 5;
  std::uint32_t n_parallel = 1;
  bool apart = false;
  std::string format = "md";
  bool no_warmup = false;
  bool no_limits = false;
};

Result<std::vector<BenchTest>> list_tests(const BenchFlags& flags) {
  RECUA_ASSIGN_OR_RETURN(const auto prompts,
                         parse_counts("-p/--n-prompt", flags.n_prompt, kTokensMax));
  RECUA_ASSIGN_OR_RETURN(const auto gens, parse_counts("-n/--n-gen", flags.n_gen, kTokensMax));
  RECUA_ASSIGN_OR_RETURN(const auto depths,
                         parse_counts("-d/--n-depth", flags.n_depth, kTokensMax));
  std::vector<BenchTest> tests;
  for (const std::uint32_t depth : depths) {
    for (const std::uint32_t n : prompts)
      if (n > 0) tests.push_back({.n_prompt = n, .n_depth = depth});
    for (const std::uint32_t n : gens)
      if (n > 0) tests.push_back({.n_gen = n, .n_depth = depth});
    for (const std::string& pair : flags.prompt_gen) {
      RECUA_ASSIGN_OR_RETURN(const auto counts, parse_counts("-pg", pair, kTokensMax));
      if (counts.size() != 2 || counts[0] == 0 || counts[1] == 0) {
        return Error{ErrorCode::kInvalidArgument,
                     fmt::format("-pg is '{}', need PROMPT,GEN such as 512,128", pair)};
      }
      tests.push_back({.n_prompt = counts[0], .n_gen = counts[1], .n_depth = depth});
    }
  }
  if (tests.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 "nothing to measure: -p and -n are both 0, give one of them a number"};
  }
  for (BenchTest& test : tests) {
    test.n_parallel = flags.n_parallel;
    test.apart = flags.apart;
  }
  return tests;
}

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

/// What the rows are measured against: the model's work, and the machine's peaks around each
/// repetition.
class RowLimits {
 public:
  /// Without limits when there are none: the model is on workers, or its kernels are scalar.
  RowLimits(const BenchFlags& flags, const Backend& backend)
      : n_ubatch_(flags.backend.model.n_ubatch) {
    if (flags.no_limits || backend.device == nullptr) return;
    const auto hyperparams = model::read_hyperparams(*backend.file);
    const auto k_type = parse_cache_type("-ctk", flags.backend.model.k_type);
    const auto v_type = parse_cache_type("-ctv", flags.backend.model.v_type);
    if (!hyperparams.ok() || !k_type.ok() || !v_type.ok()) return;
    model_ = cluster::model_shape(*backend.file, *hyperparams, *k_type, *v_type);
    auto probe = LimitProbe::create(model_, backend.n_threads);
    if (!probe.ok()) {
      log_info("{}", probe.error().message);
      return;
    }
    probe_ = std::move(*probe);
    (void)probe_->measure();  // The first one takes longer and finds less.
  }

  /// False: there are none.
  bool begin() {
    if (probe_) before_ = probe_->measure();
    return probe_.has_value();
  }
  /// Of what ran since begin() or the last call. Empty where nothing is known.
  std::optional<BenchLimit> beside(const BenchTest& test) {
    if (!probe_) return std::nullopt;
    const cluster::MachineSpeed after = probe_->measure();
    const auto limits = limits_between(std::exchange(before_, after), after);
    return limit_of(model_, limits, test, n_ubatch_);
  }

 private:
  std::uint32_t n_ubatch_;
  cluster::ModelShape model_;
  std::optional<LimitProbe> probe_;
  cluster::MachineSpeed before_;
};

/// A token whose time does not count: whoever measures the limits drives all else out of the
/// caches.
Result<void> warm_up(BenchSequences& sequences, const BenchTest& test) {
  RECUA_RETURN_IF_ERROR(sequences.generate(1));
  sequences.truncate(test.n_depth);
  return ok();
}

Result<BenchRow> measure(Backend& backend, BenchSequences& sequences, const BenchTest& test,
                         const BenchFlags& flags, RowLimits& limits,
                         const std::function<void()>& on_repetition) {
  BenchRow row{.test = test, .test_time = utc_now(), .samples_ns = {}};
  if (!flags.no_warmup) {
    RECUA_RETURN_IF_ERROR(
        sequences.prefill(std::min(test.n_prompt, backend.executor->info().n_batch)));
    RECUA_RETURN_IF_ERROR(sequences.generate(1));
    sequences.truncate(0);
  }
  RECUA_RETURN_IF_ERROR(sequences.prefill(test.n_depth));
  if (limits.begin()) RECUA_RETURN_IF_ERROR(warm_up(sequences, test));
  for (std::uint32_t i = 0; i < flags.n_repetitions; ++i) {
    const net::TimePoint begin = backend.clock.now();
    RECUA_RETURN_IF_ERROR(sequences.prefill(test.n_prompt));
    RECUA_RETURN_IF_ERROR(sequences.generate(test.n_gen));
    const auto ns = (backend.clock.now() - begin).count();
    row.samples_ns.push_back(static_cast<std::uint64_t>(std::max<std::int64_t>(ns, 1)));
    sequences.truncate(test.n_depth);
    on_repetition();
    if (const auto limit = limits.beside(test)) {
      row.limits.push_back(*limit);
      RECUA_RETURN_IF_ERROR(warm_up(sequences, test));
    }
  }
  sequences.truncate(0);
  return row;
}

/// "llama 260.0K F32": the architecture, its size and the type of most of its weights.
std::string describe_model(const gguf::GgufFile& file, std::uint64_t n_params) {
  std::map<quant::DataType, std::uint64_t> n_by_type;
  for (const gguf::TensorInfo& tensor : file.tensors()) n_by_type[tensor.type] += tensor.n_elements;
  quant::DataType most = quant::DataType::kF32;
  std::uint64_t n_most = 0;
  for (const auto& [type, n] : n_by_type) {
    if (n <= n_most) continue;
    n_most = n;
    most = type;
  }
  const auto value = static_cast<double>(n_params);
  const std::string size = value >= 1e9   ? fmt::format("{:.1f}B", value / 1e9)
                           : value >= 1e6 ? fmt::format("{:.1f}M", value / 1e6)
                                          : fmt::format("{:.1f}K", value / 1e3);
  const auto architecture = file.get_str("general.architecture");
  return fmt::format("{} {} {}", architecture.ok() ? *architecture : "?", size,
                     quant::traits(most).name);
}

BenchSetup describe_setup(const BenchFlags& flags, const Backend& backend) {
  BenchSetup setup;
  setup.build_commit = build_commit();
  setup.cpu_info = cpu_name();
  setup.backend = backend.executor->info().description;
  setup.model_filename = flags.backend.model.model;
  for (const gguf::TensorInfo& tensor : backend.file->tensors()) {
    setup.model_size += tensor.n_bytes;
    setup.model_n_params += tensor.n_elements;
  }
  setup.model_type = describe_model(*backend.file, setup.model_n_params);
  setup.n_batch = flags.backend.model.n_batch;
  setup.n_ubatch = flags.backend.model.n_ubatch;
  // On workers each computes with its own; 0: as many as it has cores.
  setup.n_threads = backend.n_threads != 0 ? backend.n_threads : flags.backend.model.n_threads;
  setup.type_k = flags.backend.model.k_type;
  setup.type_v = flags.backend.model.v_type;
  return setup;
}

int bench(BenchFlags& flags) {
  const auto format = parse_bench_format(flags.format);
  if (!format.ok()) return report(format.error());
  const auto tests = list_tests(flags);
  if (!tests.ok()) return report(tests.error());
  if (flags.n_repetitions == 0 || flags.n_repetitions > 1000000)
    return report({ErrorCode::kInvalidArgument,
                   fmt::format("-r/--repetitions is {}, need a number from 1 to 1000000",
                               flags.n_repetitions)});
  if (flags.n_parallel == 0 || flags.n_parallel > kParallelMax)
    return report(
        {ErrorCode::kInvalidArgument, fmt::format("--parallel is {}, need a number from 1 to {}",
                                                  flags.n_parallel, kParallelMax)});
  std::uint32_t n_ctx = 1;
  for (const BenchTest& test : *tests)
    n_ctx = std::max(n_ctx, std::max(test.n_depth + test.n_prompt + test.n_gen, test.n_prompt + 1));
  auto opened = open_backend(
      flags.backend, {.n_ctx = n_ctx, .n_sequences = flags.n_parallel, .with_tokenizer = false});
  if (!opened.ok()) return report(opened.error());
  Backend& backend = **opened;

  BenchPrinter printer(*format, describe_setup(flags, backend));
  if (const auto written = write_output(printer.begin()); !written.ok())
    return report(written.error());
  const std::size_t n_total = tests->size() * flags.n_repetitions;
  std::size_t n_done = 0;
  BenchSequences sequences(
      backend, flags.n_parallel,
      flags.apart ? BenchSequences::Steps::kApart : BenchSequences::Steps::kTogether);
  RowLimits limits(flags, backend);
  for (const BenchTest& test : *tests) {
    ProgressBar bar("bench", ProgressBar::Unit::kCount);
    auto row = measure(backend, sequences, test, flags, limits,
                       [&] { bar.update(++n_done, n_total, test.name()); });
    bar.finish();
    if (!row.ok()) {
      const auto written = write_output(printer.end());  // What was measured stays well-formed.
      if (!written.ok()) log_warning("{}", written.error().message);
      return report(row.error());
    }
    if (const auto written = write_output(printer.row(*row)); !written.ok())
      return report(written.error());
  }
  if (const auto written = write_output(printer.end()); !written.ok())
    return report(written.error());
  return kExitOk;
}

}  // namespace

void register_bench(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("bench", "Measure prefill and decode speed");
  const auto flags = std::make_shared<BenchFlags>();
  sub->add_option("-p,--n-prompt", flags->n_prompt, "Prompt lengths to prefill; 0: none")
      ->capture_default_str()
      ->type_name("N,...");
  sub->add_option("-n,--n-gen", flags->n_gen, "Numbers of tokens to generate one by one; 0: none")
      ->capture_default_str()
      ->type_name("N,...");
  sub->add_option("--prompt-gen", flags->prompt_gen,
                  "A prompt and a generation behind it, timed together; also -pg; may be repeated")
      ->type_name("PROMPT,GEN")
      ->allow_extra_args(false);
  sub->add_option("-d,--n-depth", flags->n_depth, "Tokens already in the cache")
      ->capture_default_str()
      ->type_name("N,...");
  sub->add_option("--parallel", flags->n_parallel,
                  "Sequences that generate at the same time, in steps together; also -np")
      ->capture_default_str()
      ->type_name("N");
  sub->add_flag("--apart", flags->apart,
                "Each of them in steps of its own, which may be on different workers at a time");
  sub->add_option("-r,--repetitions", flags->n_repetitions, "How often each test is measured")
      ->capture_default_str()
      ->type_name("N");
  sub->add_option("-o,--output", flags->format, "md, csv, json or jsonl")
      ->capture_default_str()
      ->type_name("FORMAT");
  sub->add_flag("--no-warmup", flags->no_warmup, "Measure the first, cold step too");
  sub->add_flag("--no-limits", flags->no_limits,
                "Do not measure what the machine could do at most (0.3 s, and 0.1 s and a token "
                "per repetition)");
  flags->backend.add(*sub, false);
  sub->footer(
      "Rows: ppN is prefill of N tokens, tgN generation of N tokens, xM by M sequences; tokens/s "
      "of "
      "all, mean ± deviation.\n"
      "Of limit: the share of what memory or the processor give, measured before and after each "
      "repetition\nwith as many threads, as a median; it says which of the two is the limit.\n\n"
      "Examples:\n"
      "  recua bench -m model.gguf\n"
      "  recua bench -m model.gguf -p 512,2048 -n 0 -r 3 -t 4\n"
      "  recua bench -m model.gguf -p 0 -n 128 -d 0,4096 -o json\n"
      "  recua bench -m model.gguf -p 0 -n 64 --parallel 8\n"
      "  recua bench -m model.gguf --workers 10.0.0.5:7500,10.0.0.6:7500");
  sub->callback([flags, &exit_code] { exit_code = bench(*flags); });
}

}  // namespace recua::cli
