#include "net/wait_set.h"

#include <memory>
#include <sys/eventfd.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace recua::net {
namespace {

/// A descriptor that becomes readable when told to.
class Bell {
 public:
  Bell() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~Bell() { ::close(fd_); }
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;

  [[nodiscard]] int fd() const { return fd_; }
  void ring() const {
    const std::uint64_t one = 1;
    ASSERT_EQ(::write(fd_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  }
  void silence() const {
    std::uint64_t value = 0;
    ASSERT_EQ(::read(fd_, &value, sizeof(value)), static_cast<ssize_t>(sizeof(value)));
  }

 private:
  int fd_;
};

TEST(WaitSet, EndsForWhatIsReadableAndSaysWhich) {
  const Bell first_bell;
  const Bell second_bell;
  WaitSet set;
  WaitHandle first(first_bell.fd());
  WaitHandle second(second_bell.fd());
  ASSERT_TRUE(first.join(set));
  ASSERT_TRUE(second.join(set));
  EXPECT_FALSE(set.wait());
  second_bell.ring();
  EXPECT_TRUE(set.wait());
  EXPECT_FALSE(first.take());
  EXPECT_TRUE(second.take());
  EXPECT_FALSE(second.take());
  // It is readable until somebody reads.
  EXPECT_TRUE(set.wait());
  second_bell.silence();
  EXPECT_FALSE(set.look());
}

TEST(WaitSet, JoiningAgainIsNothingNew) {
  const Bell bell;
  WaitSet set;
  WaitHandle handle(bell.fd());
  ASSERT_TRUE(handle.join(set));
  ASSERT_TRUE(handle.join(set));
  bell.ring();
  EXPECT_TRUE(set.look());
}

TEST(WaitSet, HandlesMoveBetweenSetsAndEndInAnyOrder) {
  const Bell bell;
  bell.ring();
  auto set = std::make_unique<WaitSet>();
  WaitSet other;
  auto handle = std::make_unique<WaitHandle>(bell.fd());
  ASSERT_TRUE(handle->join(*set));
  ASSERT_TRUE(handle->join(other));
  EXPECT_FALSE(set->look());
  EXPECT_TRUE(other.look());
  ASSERT_TRUE(handle->join(*set));
  set.reset();
  ASSERT_TRUE(handle->join(other));
  EXPECT_TRUE(other.look());
  handle.reset();
  EXPECT_FALSE(other.look());
}

TEST(WaitSet, WhoLeavesEndsNoWait) {
  const Bell bell;
  bell.ring();
  WaitSet set;
  WaitHandle handle(bell.fd());
  ASSERT_TRUE(handle.join(set));
  EXPECT_TRUE(set.look());
  handle.leave();
  EXPECT_FALSE(set.look());
  ASSERT_TRUE(handle.join(set));
  EXPECT_TRUE(set.look());
}

TEST(WaitSet, WhatHasNoDescriptorDoesNotJoin) {
  WaitSet set;
  WaitHandle handle(-1);
  EXPECT_FALSE(handle.join(set));
  EXPECT_FALSE(set.look());
}

}  // namespace
}  // namespace recua::net
