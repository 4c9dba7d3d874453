#include "cli/bench_report.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/check.h"

namespace recua::cli {
namespace {

using Json = nlohmann::ordered_json;

struct NamedFormat {
  std::string_view name;
  BenchFormat format;
};
constexpr std::array kFormats = {
    NamedFormat{"md", BenchFormat::kMarkdown}, NamedFormat{"csv", BenchFormat::kCsv},
    NamedFormat{"json", BenchFormat::kJson}, NamedFormat{"jsonl", BenchFormat::kJsonLines}};

std::string size_text(std::uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1024.0 * 1024.0);
  return mib >= 1024 ? fmt::format("{:.2f} GiB", mib / 1024) : fmt::format("{:.2f} MiB", mib);
}

std::string params_text(std::uint64_t n) {
  const auto value = static_cast<double>(n);
  if (value >= 1e9) return fmt::format("{:.2f} B", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.2f} M", value / 1e6);
  return fmt::format("{:.2f} K", value / 1e3);
}

/// Names of the fields in the order in which they are printed.
Json row_json(const BenchSetup& setup, const BenchRow& row) {
  std::vector<double> ns(row.samples_ns.begin(), row.samples_ns.end());
  const Spread time = spread_of(ns);
  const std::vector<double> samples_ts = row.samples_ts();
  const Spread rate = spread_of(samples_ts);
  Json out;
  out["build_commit"] = setup.build_commit;
  out["cpu_info"] = setup.cpu_info;
  out["backends"] = setup.backend;
  out["model_filename"] = setup.model_filename;
  out["model_type"] = setup.model_type;
  out["model_size"] = setup.model_size;
  out["model_n_params"] = setup.model_n_params;
  out["n_batch"] = setup.n_batch;
  out["n_ubatch"] = setup.n_ubatch;
  out["n_threads"] = setup.n_threads;
  out["type_k"] = setup.type_k;
  out["type_v"] = setup.type_v;
  out["n_prompt"] = row.test.n_prompt;
  out["n_gen"] = row.test.n_gen;
  out["n_depth"] = row.test.n_depth;
  out["n_parallel"] = row.test.n_parallel;
  out["apart"] = row.test.apart;
  out["test_time"] = row.test_time;
  out["avg_ns"] = static_cast<std::uint64_t>(std::llround(time.mean));
  out["stddev_ns"] = static_cast<std::uint64_t>(std::llround(time.deviation));
  out["avg_ts"] = rate.mean;
  out["stddev_ts"] = rate.deviation;
  const auto limit = row.limit();
  out["limit_ts"] = limit ? Json(limit->tokens_per_second) : Json();
  out["limit_by"] = limit ? Json(limit->by_memory ? "memory" : "compute") : Json();
  out["of_limit"] = limit ? Json(*row.of_limit()) : Json();
  out["read_bytes_per_second"] = limit ? Json(limit->bytes_per_second) : Json();
  out["samples_ns"] = row.samples_ns;
  out["samples_ts"] = samples_ts;
  return out;
}

std::string dump(const Json& json, int indent = -1) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

/// RFC 4180: quoted, with quotes doubled.
std::string csv_field(const Json& value) {
  const std::string text = value.is_string() ? value.get<std::string>() : dump(value);
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

/// Samples have no place in a table.
bool in_csv(const std::string& key) { return key != "samples_ns" && key != "samples_ts"; }

std::string csv_line(const Json& row, bool names) {
  std::string line;
  for (const auto& [key, value] : row.items()) {
    if (!in_csv(key)) continue;
    if (!line.empty()) line += ',';
    line += names ? key : csv_field(value);
  }
  return line + "\n";
}

/// A bar would begin a new column: the backend of a split model holds some.
std::string without_bars(std::string text) {
  std::replace(text.begin(), text.end(), '|', '/');
  return text;
}

std::string markdown_row(const BenchSetup& setup, const BenchRow& row) {
  const Spread rate = spread_of(row.samples_ts());
  const auto limit = row.limit();
  const std::string share = limit ? fmt::format("{:.0f} % {}", 100.0 * *row.of_limit(),
                                                limit->by_memory ? "memory" : "compute")
                                  : std::string();
  return fmt::format("| {:<24} | {:>10} | {:>9} | {:<24} | {:>7} | {:>15} | {:>18} | {:>13} |\n",
                     setup.model_type, size_text(setup.model_size),
                     params_text(setup.model_n_params), without_bars(setup.backend),
                     setup.n_threads, row.test.name(),
                     fmt::format("{:.2f} ± {:.2f}", rate.mean, rate.deviation), share);
}

}  // namespace

std::string BenchTest::name() const {
  std::string out;
  if (n_prompt > 0) out += fmt::format("pp{}", n_prompt);
  if (n_prompt > 0 && n_gen > 0) out += '+';
  if (n_gen > 0) out += fmt::format("tg{}", n_gen);
  if (n_depth > 0) out += fmt::format(" @ d{}", n_depth);
  if (n_parallel > 1) out += fmt::format(" x{}{}", n_parallel, apart ? " apart" : "");
  return out;
}

std::vector<double> BenchRow::samples_ts() const {
  std::vector<double> out;
  const double n_tokens =
      (static_cast<double>(test.n_prompt) + test.n_gen) * static_cast<double>(test.n_parallel);
  for (const std::uint64_t ns : samples_ns) out.push_back(n_tokens * 1e9 / static_cast<double>(ns));
  return out;
}

std::optional<BenchLimit> BenchRow::limit() const {
  if (limits.empty()) return std::nullopt;
  std::vector<BenchLimit> sorted = limits;
  std::sort(sorted.begin(), sorted.end(), [](const BenchLimit& a, const BenchLimit& b) {
    return a.tokens_per_second < b.tokens_per_second;
  });
  return sorted[sorted.size() / 2];
}

std::optional<double> BenchRow::of_limit() const {
  if (limits.empty()) return std::nullopt;
  std::vector<double> shares = samples_ts();
  RECUA_CHECK(limits.size() == shares.size());
  for (std::size_t i = 0; i < shares.size(); ++i) shares[i] /= limits[i].tokens_per_second;
  std::sort(shares.begin(), shares.end());
  const std::size_t half = shares.size() / 2;
  return shares.size() % 2 == 1 ? shares[half] : (shares[half - 1] + shares[half]) / 2;
}

Spread spread_of(const std::vector<double>& values) {
  Spread out;
  if (values.empty()) return out;
  const auto n = static_cast<double>(values.size());
  for (const double value : values) out.mean += value / n;
  if (values.size() < 2) return out;
  double sum_sq = 0.0;
  for (const double value : values) sum_sq += (value - out.mean) * (value - out.mean);
  out.deviation = std::sqrt(sum_sq / (n - 1));
  return out;
}

Result<BenchFormat> parse_bench_format(std::string_view name) {
  for (const NamedFormat& known : kFormats)
    if (known.name == name) return known.format;
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("-o/--output is '{}', need md, csv, json or jsonl", name)};
}

std::string BenchPrinter::begin() const {
  switch (format_) {
    case BenchFormat::kMarkdown:
      return fmt::format(
          "| {:<24} | {:>10} | {:>9} | {:<24} | {:>7} | {:>15} | {:>18} | {:>13} |\n"
          "| {:-<24} | {:->9}: | {:->8}: | {:-<24} | {:->6}: | {:->14}: | {:->17}: | {:->12}: |\n",
          "model", "size", "params", "backend", "threads", "test", "t/s", "of limit", "", "", "",
          "", "", "", "", "");
    case BenchFormat::kJson:
      return "[\n";
    case BenchFormat::kCsv:
    case BenchFormat::kJsonLines:
      return {};
  }
  return {};
}

std::string BenchPrinter::row(const BenchRow& row) {
  const bool is_first = n_rows_++ == 0;
  switch (format_) {
    case BenchFormat::kMarkdown:
      return markdown_row(setup_, row);
    case BenchFormat::kCsv: {
      const Json json = row_json(setup_, row);
      return (is_first ? csv_line(json, true) : std::string{}) + csv_line(json, false);
    }
    case BenchFormat::kJson:
      return (is_first ? "" : ",\n") + dump(row_json(setup_, row), 2);
    case BenchFormat::kJsonLines:
      return dump(row_json(setup_, row)) + "\n";
  }
  return {};
}

std::string BenchPrinter::end() const {
  switch (format_) {
    case BenchFormat::kMarkdown:
      return fmt::format("\nbuild: {}\n", setup_.build_commit);
    case BenchFormat::kJson:
      return "\n]\n";
    case BenchFormat::kCsv:
    case BenchFormat::kJsonLines:
      return {};
  }
  return {};
}

}  // namespace recua::cli
