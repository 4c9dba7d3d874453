#include "net/spin_budget.h"

#include <gtest/gtest.h>

namespace recua::net {
namespace {

TEST(SpinBudget, FollowsWhatWaitingHasBroughtLately) {
  SpinBudget budget(std::chrono::microseconds(160));
  EXPECT_EQ(budget.current(), std::chrono::microseconds(160));
  budget.came_after(std::chrono::microseconds(300));
  EXPECT_EQ(budget.current(), std::chrono::microseconds(80));
  for (int i = 0; i < 10; ++i) budget.came_after(std::chrono::milliseconds(5));
  EXPECT_EQ(budget.current(), std::chrono::microseconds(10));
  budget.came_after(std::chrono::microseconds(150));  // Slept through, but it would have paid off.
  EXPECT_EQ(budget.current(), std::chrono::microseconds(160));
  SpinBudget never(Duration::zero());
  never.came_after(Duration(1));
  EXPECT_EQ(never.current(), Duration::zero());
}

}  // namespace
}  // namespace recua::net
