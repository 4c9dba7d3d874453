#include "cli/text_table.h"

#include <gtest/gtest.h>

namespace recua::cli {
namespace {

TEST(TextTable, AlignsColumnsAndEndsLinesAtTheirLastCharacter) {
  EXPECT_EQ(text_table({{"name", ">n", "why"}, {"a", "100", ""}, {"longer", "7", "so"}}),
            "name      n  why\n"
            "a       100\n"
            "longer    7  so\n");
}

TEST(TextTable, CountsCharactersNotBytes) {
  EXPECT_EQ(text_table({{"µs", "x"}, {"abc", "y"}}),
            "µs   x\n"
            "abc  y\n");
}

TEST(TextTable, OfNothingIsNothing) { EXPECT_EQ(text_table({}), ""); }

}  // namespace
}  // namespace recua::cli
