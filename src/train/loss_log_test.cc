#include "train/loss_log.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/scratch_folder.h"
#include "train/loss_plot.h"

namespace recua::train {
namespace {

LossRecord record_of(std::uint64_t step, double loss, std::optional<double> validation = {}) {
  return {.step = step,
          .loss = loss,
          .validation_loss = validation,
          .learning_rate = 1e-3,
          .gradient_norm = 0.5,
          .tokens_per_second = 1234.5};
}

class LossLogTest : public ::testing::Test {
 protected:
  LossLog must_open(std::uint64_t n_steps) {
    auto log = LossLog::open(path_, n_steps);
    EXPECT_TRUE(log.ok()) << log.error().message;
    return std::move(log).value();
  }
  [[nodiscard]] std::string content() const {
    std::ostringstream out;
    out << std::ifstream(path_, std::ios::binary).rdbuf();
    return out.str();
  }
  void write(std::string_view text) const { std::ofstream(path_, std::ios::binary) << text; }
  void expect_error(std::string_view text, std::string_view says) {
    write(text);
    const auto log = LossLog::open(path_, 10);
    ASSERT_FALSE(log.ok()) << text;
    EXPECT_EQ(log.error().code, ErrorCode::kCorrupt);
    EXPECT_NE(log.error().message.find(says), std::string::npos) << log.error().message;
    EXPECT_NE(log.error().message.find("loss.csv"), std::string::npos);
    EXPECT_EQ(content(), text);  // Left as it was, for whoever wants to look.
  }

  ScratchFolder folder_;
  std::filesystem::path path_ = folder_ / "loss.csv";
};

TEST_F(LossLogTest, WritesALineForEachStepAtOnce) {
  LossLog log = must_open(0);
  EXPECT_EQ(content(), std::string(kLossLogHeader) + "\n");
  ASSERT_TRUE(log.append(record_of(1, 6.25)).ok());
  ASSERT_TRUE(log.append(record_of(2, 6.125, 6.5)).ok());
  EXPECT_EQ(content(), std::string(kLossLogHeader) +
                           "\n1,6.25,,0.001,0.5,1234.5\n2,6.125,6.5,0.001,0.5,1234.5\n");
  EXPECT_EQ(log.records().size(), 2u);
}

TEST_F(LossLogTest, GoesOnAfterTheLastCheckpointWithoutAStepTwice) {
  {
    LossLog log = must_open(0);
    for (std::uint64_t step = 1; step <= 7; ++step)
      ASSERT_TRUE(log.append(record_of(step, 10.0 - static_cast<double>(step))).ok());
  }
  std::ofstream(path_, std::ios::app) << "8,1.5,,0.0";  // Killed while it wrote.
  LossLog log = must_open(5);
  EXPECT_EQ(log.records().size(), 5u);
  ASSERT_TRUE(log.append(record_of(6, 3.5)).ok());
  const auto read = read_loss_log(path_);
  ASSERT_TRUE(read.ok()) << read.error().message;
  ASSERT_EQ(read->size(), 6u);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ((*read)[i].step, i + 1);
  EXPECT_EQ(read->back().loss, 3.5);
  EXPECT_EQ(read->front().loss, 9.0);
  EXPECT_FALSE(read->front().validation_loss.has_value());
}

TEST_F(LossLogTest, BeginsAnewForANewRunAndWhereNoLogIs) {
  ASSERT_TRUE(must_open(0).append(record_of(1, 1.0)).ok());
  EXPECT_TRUE(must_open(0).records().empty());
  std::filesystem::remove(path_);
  EXPECT_TRUE(must_open(100).records().empty());
  EXPECT_EQ(content(), std::string(kLossLogHeader) + "\n");
}

TEST_F(LossLogTest, ReadsWhatItWrote) {
  LossLog log = must_open(0);
  LossRecord record = record_of(3, std::numeric_limits<double>::quiet_NaN(), 0.12345678);
  record.tokens_per_second = 1e9;
  ASSERT_TRUE(log.append(record).ok());
  const auto read = read_loss_log(path_);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_TRUE(std::isnan(read->front().loss));
  EXPECT_NEAR(*read->front().validation_loss, 0.12345678, 5e-8);  // Seven digits.
  EXPECT_EQ(read->front().tokens_per_second, 1e9);
}

TEST_F(LossLogTest, RefusesAFileThatIsNoLog) {
  const std::string header = std::string(kLossLogHeader) + "\n";
  expect_error("a,b\n1,2\n", "line 1");
  expect_error(header + "1,2,3\n", "line 2");
  expect_error(header + "1,2,,3,4,5,6\n", "line 2");
  expect_error(header + "1,2,,3,4,5\nx,2,,3,4,5\n", "line 3");
  expect_error(header + "2,2,,3,4,5\n2,2,,3,4,5\n", "line 3: step 2 comes after step 2");
}

TEST_F(LossLogTest, SaysThatItCannotWrite) {
  const auto log = LossLog::open(folder_ / "no/such/folder/loss.csv", 0);
  ASSERT_FALSE(log.ok());
  EXPECT_NE(log.error().message.find("no/such/folder"), std::string::npos);
}

std::size_t occurrences(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(LossSvg, ShowsBothLossesAndTheirLegend) {
  std::vector<LossRecord> records;
  for (std::uint64_t step = 1; step <= 50; ++step) {
    const double loss = 6.0 / std::sqrt(static_cast<double>(step));
    records.push_back(
        record_of(step, loss, step % 10 == 0 ? std::optional(loss + 0.1) : std::nullopt));
  }
  const std::string svg = loss_svg(records, "a <title>");
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_NE(svg.find("a &lt;title&gt;"), std::string::npos);
  EXPECT_NE(svg.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_EQ(occurrences(svg, "<circle"), 5u);
  EXPECT_EQ(occurrences(svg, "<path"), 2u);
  EXPECT_NE(svg.find("least 0.9485 at step 50"), std::string::npos);
}

TEST(LossSvg, StaysSmallAndFiniteWhateverItShows) {
  std::vector<LossRecord> records;
  for (std::uint64_t step = 1; step <= 200000; ++step)
    records.push_back(record_of(step, step % 1000 == 7 ? std::nan("") : 3.0, 2.0));
  const std::string svg = loss_svg(records, "long");
  EXPECT_LT(svg.size(), std::size_t{1} << 18);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  for (const std::vector<LossRecord>& few : {std::vector<LossRecord>{},
                                             {record_of(1, 2.0)},
                                             {record_of(9, std::nan(""))},
                                             {record_of(1, 0.0), record_of(2, 0.0)}}) {
    const std::string small = loss_svg(few, "few");
    EXPECT_TRUE(small.ends_with("</svg>\n"));
    EXPECT_EQ(small.find("\"nan"), std::string::npos);
    EXPECT_EQ(small.find(" nan"), std::string::npos);
    EXPECT_EQ(small.find("inf"), std::string::npos);
  }
}

}  // namespace
}  // namespace recua::train
