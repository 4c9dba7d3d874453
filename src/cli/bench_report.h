#pragma once
/// What `recua bench` measured, and the forms in which it is printed. Field names are those of
/// llama-bench, so that existing scripts read them.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace recua::cli {

/// n_prompt tokens of prefill, then n_gen tokens one by one, behind n_depth tokens already cached;
/// all that for n_parallel sequences, which generate in steps together or apart.
struct BenchTest {
  std::uint32_t n_prompt = 0;
  std::uint32_t n_gen = 0;
  std::uint32_t n_depth = 0;
  std::uint32_t n_parallel = 1;
  bool apart = false;

  /// "pp512", "tg128", "pp512+tg128", "tg128 @ d4096", "tg128 x8", "tg128 x2 apart".
  [[nodiscard]] std::string name() const;
};

/// The same for all tests of a run.
struct BenchSetup {
  std::string build_commit;
  std::string cpu_info;
  std::string backend;
  std::string model_filename;
  std::string model_type;
  std::uint64_t model_size = 0;      // Bytes of tensors.
  std::uint64_t model_n_params = 0;  // Elements of tensors.
  std::uint32_t n_batch = 0;
  std::uint32_t n_ubatch = 0;
  std::uint32_t n_threads = 0;
  std::string type_k;
  std::string type_v;
};

/// What the machine could do at most (cli/bench_limits.h), measured beside a repetition.
struct BenchLimit {
  double tokens_per_second = 0.0;
  bool by_memory = false;         // Else by multiply-and-adds.
  double bytes_per_second = 0.0;  // Memory's, when read in a stream.
};

struct BenchRow {
  BenchTest test;
  std::string test_time;                  // When it began, UTC, ISO 8601.
  std::vector<std::uint64_t> samples_ns;  // One per repetition; none is 0.
  std::vector<BenchLimit> limits = {};    // As many, or none.

  [[nodiscard]] std::vector<double> samples_ts() const;  // Tokens per second.
  /// The middle one by tokens per second; empty without limits.
  [[nodiscard]] std::optional<BenchLimit> limit() const;
  /// Each repetition's speed as a share of the limit beside it, their median; empty without limits.
  [[nodiscard]] std::optional<double> of_limit() const;
};

/// Mean and sample deviation; the deviation of a single value is 0.
struct Spread {
  double mean = 0.0;
  double deviation = 0.0;
};
Spread spread_of(const std::vector<double>& values);

enum class BenchFormat { kMarkdown, kCsv, kJson, kJsonLines };
/// kInvalidArgument: lists the formats.
Result<BenchFormat> parse_bench_format(std::string_view name);

/// Prints rows as they come: begin() once, row() for each, end() once; all give text to print.
class BenchPrinter {
 public:
  BenchPrinter(BenchFormat format, BenchSetup setup) : format_(format), setup_(std::move(setup)) {}

  std::string begin() const;
  std::string row(const BenchRow& row);
  std::string end() const;

 private:
  BenchFormat format_;
  BenchSetup setup_;
  std::size_t n_rows_ = 0;
};

}  // namespace recua::cli
