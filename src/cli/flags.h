#pragma once
/// Flags that several subcommands share, named as llama.cpp names them where it has one.
///
/// Each struct has add(app), which binds the flags to its members (so it must outlive the parsing:
/// a subcommand keeps it in a shared_ptr that its callback holds), and check(), which turns what
/// the user wrote into checked values. Errors are kInvalidArgument and name the flag, the value and
/// what would be right.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cli/app.h"
#include "cli/cpu_flags.h"
#include "collective/wire_format.h"
#include "model/slice.h"
#include "net/connection.h"
#include "quant/data_type.h"
#include "sampling/params.h"
#include "tokenizer/token.h"

namespace recua::cli {

/// Which model, and how much memory and how many threads it gets.
struct ModelFlags {
  std::string model;
  std::uint32_t n_ctx = 0;  // See ctx_given: 0 asked for means the model's own context.
  bool ctx_given = false;
  std::uint32_t n_threads = 0;  // 0: one per physical core.
  std::uint32_t n_batch = 2048;
  std::uint32_t n_ubatch = 512;
  std::string k_type = "f16";
  std::string v_type = "f16";
  bool repack = true;        // False: weights stay where they were mapped.
  bool memory_check = true;  // Refuse what does not fit before loading it.
  CpuFlags cpus = {};

  /// with_ctx: -c too. Tools that find the context out themselves leave it away.
  void add(CLI::App& app, bool with_ctx = true);
  /// Those that size memory, without the model.
  void add_sizes(CLI::App& app, bool with_ctx);
  [[nodiscard]] Result<void> check() const;
};

/// --no-repack, which sets repack to false. Remote workers have a flag of their own.
void add_no_repack(CLI::App& app, bool& repack);

/// An adapter for the model.
struct LoraFlags {
  std::string path;  // Filled by check(), as the rest.
  float scale = 1.0F;

  void add(CLI::App& app);
  /// Takes "FILE" or "FILE:SCALE" apart; a name of a file that is there is a name.
  [[nodiscard]] Result<void> check();
  [[nodiscard]] bool any() const { return !text.empty(); }

  std::string text;
};

/// f16 or f32. flag stands in the message.
Result<quant::DataType> parse_cache_type(std::string_view flag, std::string_view text);

/// Where the model runs.
struct ClusterFlags {
  std::vector<net::Endpoint> workers;  // Filled by check().
  std::uint32_t n_local_workers = 0;   // So many are started here, and stopped at the end.
  std::vector<std::uint32_t> split;    // Filled by check(): layers per worker, as proportions.
  std::string plan_file;               // See cli/plan_choice.h, which fills slices.
  std::vector<model::Slice> slices;    // By worker, when a plan gives them.
  bool fetch = true;                   // Workers may take missing weights from here.
  bool verify = false;                 // Workers hash their file again.
  collective::WireFormat sums = collective::WireFormat::kF32;  // Filled by check().
  double timeout_seconds = 10.0;                               // To reach a worker.

  /// plan_file is a file, not one of the words instead of it.
  [[nodiscard]] bool is_plan_named() const;
  /// with_plan: --tp, --pp and --plan too, else the command has its own.
  void add(CLI::App& app, bool with_plan = true);
  [[nodiscard]] Result<void> check();
  [[nodiscard]] bool any() const { return !workers.empty() || n_local_workers > 0; }

  std::string workers_text;
  std::uint32_t n_ranks = 1;  // Workers that share their layers; check() fills it by n_stages.
  std::optional<std::uint32_t> n_stages;
  std::string split_text;
  std::string sum_type = "f32";

 private:
  [[nodiscard]] Result<void> check_stages();
};

inline constexpr std::uint16_t kDefaultWorkerPort = 7500;

/// Completes the addresses of workers in the order of the layers. kInvalidArgument: one that is
/// there twice, has no port, or cannot be reached by the one before; begins with where.
Result<void> check_worker_list(std::string_view where, std::vector<net::Endpoint>& workers);

/// Whether an address means this machine, whoever asks.
bool is_loopback(std::string_view host);

/// How the next token is chosen.
struct SamplingFlags {
  sampling::SamplingParams params;
  std::int64_t seed = -1;  // -1: another one each time.
  std::vector<std::string> logit_bias;

  void add(CLI::App& app);
  /// The checked settings; takes the seed from the operating system's randomness if none was given.
  [[nodiscard]] Result<sampling::SamplingParams> check() const;
};

/// "ID+BIAS" or "ID-BIAS"; BIAS may be inf.
Result<sampling::LogitBias> parse_logit_bias(std::string_view text);

/// "1,2,3": numbers from 0 to 2^31-1. what names the flag in the message.
Result<std::vector<TokenId>> parse_token_ids(std::string_view flag, std::string_view text);

/// "512,1024": whole numbers, each at most value_max.
Result<std::vector<std::uint32_t>> parse_counts(std::string_view flag, std::string_view text,
                                                std::uint32_t value_max);

/// The prompt's bytes.
struct PromptFlags {
  std::string prompt;
  std::string file;
  bool prompt_given = false;

  void add(CLI::App& app);
  /// From -p, else -f, else standard input when it is not a terminal.
  /// kInvalidArgument: none of them, or two. kNotFound, kIo: the file.
  [[nodiscard]] Result<std::string> read() const;
};

/// The largest prompt that -f or standard input may hold.
inline constexpr std::size_t kPromptBytesMax = std::size_t{256} << 20;

/// Everything on standard input. kIo, kResourceExhausted (more than bytes_max).
Result<std::string> read_standard_input(std::size_t bytes_max);

}  // namespace recua::cli
