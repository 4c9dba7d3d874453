#include "rpc/link_metrics.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace recua::rpc {
namespace {

std::size_t n_lines_with(const std::string& text, std::string_view what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(LinkMetrics, GivesOneLinePerLinkEndAndCounterWithHelpAndTypeOnce) {
  std::vector<LinkStats> links(2);
  links[0] = {.from = "a:1",
              .to = "b:2",
              .transport = "rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096",
              .counters = {.messages = 7, .bytes = 123, .resent = 2}};
  links[1] = {.from = "a:1", .to = "b:2", .transport = "tcp, because ...", .sends = false};
  const std::string text = prometheus_text(links);
  EXPECT_NE(text.find("# HELP recua_link_bytes_total Bytes of tensor messages, headers included.\n"
                      "# TYPE recua_link_bytes_total counter\n"
                      "recua_link_bytes_total{link=\"a:1->b:2\",carries=\"steps\",end=\"sender\","
                      "transport=\"rdma\"} "
                      "123\n"
                      "recua_link_bytes_total{link=\"a:1->b:2\",carries=\"steps\",end=\"receiver\","
                      "transport=\"tcp\"}"
                      " 0\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("recua_link_resent_total{link=\"a:1->b:2\",carries=\"steps\",end=\"sender\","
                      "transport=\"rdma\"} 2\n"),
            std::string::npos);
  EXPECT_EQ(n_lines_with(text, "# HELP "), 13u);
  EXPECT_EQ(n_lines_with(text, "# TYPE "), 13u);
  EXPECT_EQ(n_lines_with(text, "\n"), 13u * 4u);
}

TEST(LinkMetrics, SaysNothingWithoutLinks) { EXPECT_EQ(prometheus_text({}), ""); }

TEST(LinkMetrics, EscapesLabelValues) {
  const std::vector<LinkStats> links = {{.from = "a\"\\\n", .to = "b", .transport = "tcp"}};
  EXPECT_NE(prometheus_text(links).find("{link=\"a\\\"\\\\\\n->b\",carries="), std::string::npos);
}

TEST(LinkMetrics, KnowsTheKindOfEachTransport) {
  EXPECT_EQ(transport_kind("rdma mlx5_0/1 gid 3"), "rdma");
  EXPECT_EQ(transport_kind("shared memory"), "shared memory");
  EXPECT_EQ(transport_kind("tcp, because the peer has no RDMA device"), "tcp");
  EXPECT_EQ(transport_kind("tcp"), "tcp");
}

}  // namespace
}  // namespace recua::rpc
