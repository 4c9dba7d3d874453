#include "net/verbs/lane.h"

#include <gtest/gtest.h>

#include "net/verbs/fake_fabric.h"

namespace recua::net::verbs {
namespace {
TEST(Lane, Smoke) {
  FakeFabric fabric;
  fabric.add_device("a", "fa", {"10.0.0.1"});
  fabric.add_device("b", "fb", {"10.0.0.2"});
  auto pa = fabric.provider("a"), pb = fabric.provider("b");
  auto ca = choose_ports(*pa->devices(), {}, "10.0.0.1");
  auto cb = choose_ports(*pb->devices(), {}, "10.0.0.2");
  ASSERT_TRUE(ca.ok() && cb.ok());
  std::vector<std::byte> wa(64), wb(65536), sa(65536, std::byte{7});
  std::span<std::byte> src(sa);
  auto a = Lane::create(*pa, (*ca)[0], wa, {&src, 1}, 1, {});
  ASSERT_TRUE(a.ok()) << a.error().message;
  auto b = Lane::create(*pb, (*cb)[0], wb, {}, 2, {});
  ASSERT_TRUE(b.ok()) << b.error().message;
  ASSERT_TRUE((*a)->connect((*b)->local()).ok());
  ASSERT_TRUE((*b)->connect((*a)->local()).ok());
  std::span<const std::byte> part(sa.data(), 8192);
  auto w = (*a)->write({.offset = 100, .parts = {&part, 1}, .announce = 42});
  ASSERT_TRUE(w.ok()) << w.error().message;
  EXPECT_TRUE(*w);
  std::vector<Announcement> got;
  EXPECT_TRUE((*b)->poll(got));
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].value, 42u);
  EXPECT_EQ(got[0].bytes, 8192u);
  EXPECT_EQ(wb[100], std::byte{7});
  EXPECT_TRUE((*a)->poll(got));
  EXPECT_EQ((*a)->n_completed(), 1u);
  (*a)->fence(got);
  (*b)->fence(got);
}
}  // namespace
}  // namespace recua::net::verbs
