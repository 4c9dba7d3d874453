#include "cli/bench_report.h"

#include <algorithm>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace recua::cli {
namespace {

BenchSetup example_setup() {
  BenchSetup setup;
  setup.cpu_info = "A \"quoted\" CPU, with commas";
  setup.backend = "cpu";
  setup.model_filename = "dir/model\xff.gguf";  // Not UTF-8.
  setup.model_type = "llama 1.1B Q4_K";
  setup.n_threads = 2;
  return setup;
}

BenchRow example_row() {
  return {.test = {.n_prompt = 512},
          .test_time = "2024-01-01T00:00:00Z",
          .samples_ns = {1000000000, 500000000}};
}

TEST(BenchReport, NamesTestsAsUsersKnowThem) {
  EXPECT_EQ((BenchTest{.n_prompt = 512}).name(), "pp512");
  EXPECT_EQ((BenchTest{.n_gen = 128}).name(), "tg128");
  EXPECT_EQ((BenchTest{.n_prompt = 512, .n_gen = 128}).name(), "pp512+tg128");
  EXPECT_EQ((BenchTest{.n_gen = 128, .n_depth = 4096}).name(), "tg128 @ d4096");
  EXPECT_EQ((BenchTest{.n_gen = 128, .n_parallel = 8}).name(), "tg128 x8");
  EXPECT_EQ((BenchTest{.n_gen = 128, .n_parallel = 2, .apart = true}).name(), "tg128 x2 apart");
}

TEST(BenchReport, ComputesMeanAndSampleDeviation) {
  const Spread spread = spread_of({2, 4, 4, 4, 5, 5, 7, 9});
  EXPECT_DOUBLE_EQ(spread.mean, 5.0);
  EXPECT_NEAR(spread.deviation, 2.13808993529939, 1e-12);  // sqrt(32 / 7)
  EXPECT_EQ(spread_of({3}).deviation, 0.0);
}

TEST(BenchReport, PrintsOneJsonArray) {
  BenchPrinter printer(BenchFormat::kJson, example_setup());
  std::string text = printer.begin();
  text += printer.row(example_row());
  text += printer.row(example_row());
  text += printer.end();
  const auto json = nlohmann::json::parse(text);
  ASSERT_EQ(json.size(), 2U);
  EXPECT_EQ(json[0]["n_prompt"], 512);
  EXPECT_EQ(json[0]["n_threads"], 2);
  EXPECT_EQ(json[0]["avg_ns"], 750000000);
  EXPECT_DOUBLE_EQ(json[0]["avg_ts"].get<double>(), 768.0);
  EXPECT_EQ(json[0]["samples_ts"].size(), 2U);
  for (const char* key :
       {"model_filename", "n_gen", "n_depth", "stddev_ts", "build_commit", "type_k"})
    EXPECT_TRUE(json[0].contains(key)) << key;
}

TEST(BenchReport, TellsTheShareOfTheLimitIfThereIsOne) {
  BenchRow row = example_row();
  row.limits = {{.tokens_per_second = 1024.0, .by_memory = false, .bytes_per_second = 2e10},
                {.tokens_per_second = 2048.0, .by_memory = false, .bytes_per_second = 4e10}};
  BenchPrinter lines(BenchFormat::kJsonLines, example_setup());
  const auto with = nlohmann::json::parse(lines.row(row));
  EXPECT_DOUBLE_EQ(with["of_limit"].get<double>(), 0.5);
  EXPECT_EQ(with["limit_by"], "compute");
  EXPECT_EQ(with["read_bytes_per_second"], 4e10);
  EXPECT_TRUE(nlohmann::json::parse(lines.row(example_row()))["of_limit"].is_null());
  BenchPrinter table(BenchFormat::kMarkdown, example_setup());
  EXPECT_NE(table.row(row).find(" 50 % compute |"), std::string::npos) << table.row(row);
}

TEST(BenchReport, TakesTheMedianOfTheShares) {
  BenchRow row = example_row();  // 512 and 1024 tokens per second.
  row.samples_ns.push_back(500000000);
  for (const double limit : {512.0, 2048.0, 1280.0}) {
    row.limits.push_back({.tokens_per_second = limit});
  }
  EXPECT_DOUBLE_EQ(*row.of_limit(), 0.8);
  EXPECT_DOUBLE_EQ(row.limit()->tokens_per_second, 1280.0);
  row.samples_ns.pop_back();
  row.limits.pop_back();
  EXPECT_DOUBLE_EQ(*row.of_limit(), 0.75);
}

TEST(BenchReport, PrintsOneObjectPerLine) {
  BenchPrinter printer(BenchFormat::kJsonLines, example_setup());
  std::string line = printer.begin();
  line += printer.row(example_row());
  line += printer.end();
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  EXPECT_TRUE(nlohmann::json::parse(line).is_object());
}

TEST(BenchReport, QuotesCsvFieldsAndNamesThemOnce) {
  BenchPrinter printer(BenchFormat::kCsv, example_setup());
  std::string first = printer.begin();
  first += printer.row(example_row());
  EXPECT_TRUE(first.starts_with("build_commit,cpu_info,")) << first;
  EXPECT_NE(first.find("\"A \"\"quoted\"\" CPU, with commas\""), std::string::npos) << first;
  EXPECT_FALSE(printer.row(example_row()).starts_with("build_commit"));
}

TEST(BenchReport, PrintsMarkdownThatIsATable) {
  BenchPrinter printer(BenchFormat::kMarkdown, example_setup());
  std::string text = printer.begin();
  text += printer.row(example_row());
  EXPECT_NE(text.find(" test |"), std::string::npos) << text;
  EXPECT_NE(text.find("pp512 |"), std::string::npos) << text;
  EXPECT_NE(text.find("768.00 ± 362.04"), std::string::npos) << text;
}

TEST(BenchReport, KeepsTheColumnsOfASplitModelTogether) {
  BenchSetup setup = example_setup();
  setup.backend = "layers 0-7 | 8-15";
  BenchPrinter printer(BenchFormat::kMarkdown, setup);
  const std::string row = printer.row(example_row());
  EXPECT_EQ(std::count(row.begin(), row.end(), '|'), 9) << row;
}

TEST(BenchReport, ListsTheFormatsWhenAnotherIsNamed) {
  EXPECT_TRUE(parse_bench_format("jsonl").ok());
  const auto unknown = parse_bench_format("xml");
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("md, csv, json or jsonl"), std::string::npos);
}

}  // namespace
}  // namespace recua::cli
