#include "cli/progress.h"

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

TEST(Progress, SaysHowMuchHowFastAndHowLong) {
  const std::string line =
      progress_line("loading", 512 << 20, 1 << 30, ProgressBar::Unit::kBytes, 2.0, "", 120);
  EXPECT_EQ(line,
            "loading [############............]  50 %  512.0 MiB / 1.0 GiB  256.0 MiB/s  2 s left");
}

TEST(Progress, FitsIntoANarrowTerminal) {
  for (std::size_t n_columns = 1; n_columns < 100; ++n_columns) {
    const std::string line =
        progress_line("perplexity", 3, 10, ProgressBar::Unit::kCount, 1.0, "ppl 4.9", n_columns);
    EXPECT_LT(line.size(), n_columns);
  }
}

TEST(Progress, SurvivesWrongTotals) {
  EXPECT_NE(progress_line("x", 5, 0, ProgressBar::Unit::kCount, 0, "", 80).find("0 %"),
            std::string::npos);
  EXPECT_NE(progress_line("x", 20, 10, ProgressBar::Unit::kCount, 0, "", 80).find("100 %"),
            std::string::npos);
}

TEST(Progress, WritesBytesForPeople) {
  EXPECT_EQ(bytes_text(512), "512 B");
  EXPECT_EQ(bytes_text(1536), "1.5 KiB");
  EXPECT_EQ(bytes_text(std::size_t{5} << 40), "5.0 TiB");
}

}  // namespace
}  // namespace recua::cli
