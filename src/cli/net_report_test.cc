#include "cli/net_report.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace recua::cli {
namespace {

using cluster::LinkReport;
using cluster::LinkTransport;
using cluster::TransportReport;
using std::chrono::nanoseconds;

TransportReport measured(LinkTransport transport, std::string description, int ns_per_size) {
  TransportReport out;
  out.transport = transport;
  out.available = true;
  out.description = std::move(description);
  for (const std::uint32_t bytes : {64U, 8192U, 1U << 20}) {
    out.latency.push_back({.bytes = bytes,
                           .n_samples = 1000,
                           .p50 = nanoseconds(ns_per_size),
                           .p99 = nanoseconds(2 * ns_per_size)});
  }
  out.bandwidth = {.bytes = 1U << 20, .window = 8, .n_messages = 500, .bytes_per_second = 1.15e10};
  return out;
}

LinkReport example() {
  LinkReport out;
  out.address = "10.0.0.5:7500";
  out.name = "box1:7500";
  out.software_version = "0.1.0";
  TransportReport shm;
  shm.transport = LinkTransport::kSharedMemory;
  shm.reason = "the peer is on another host";
  out.transports.push_back(shm);
  out.transports.push_back(
      measured(LinkTransport::kRdma, "rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096", 2350));
  out.transports.push_back(measured(LinkTransport::kTcp, "tcp", 12350));
  out.chosen = LinkTransport::kRdma;
  out.chosen_description = "rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096";
  out.chosen_reason = "RDMA comes before TCP";
  return out;
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

TEST(NetReport, ShowsEachTransportInATable) {
  const std::string text = link_text(example());
  EXPECT_TRUE(contains(text, "link to 10.0.0.5:7500 (box1:7500, recua 0.1.0)\n")) << text;
  EXPECT_TRUE(contains(text, "64 B"));
  EXPECT_TRUE(contains(text, "8 KiB"));
  EXPECT_TRUE(contains(text, "1 MiB"));
  EXPECT_TRUE(contains(text, "2.35 / 4.70")) << text;
  EXPECT_TRUE(contains(text, "12.3 / 24.7")) << text;
  EXPECT_TRUE(contains(text, "11.50 GB/s")) << text;
  EXPECT_TRUE(contains(text, "8 messages of 1 MiB")) << text;
}

TEST(NetReport, SaysWhatIsUsedAndWhyAndWhatIsNot) {
  const std::string text = link_text(example());
  EXPECT_TRUE(contains(text, "shared memory: not available, because the peer is on another host"));
  EXPECT_TRUE(contains(text,
                       "recua uses rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096, because RDMA "
                       "comes before TCP.\n"))
      << text;
  EXPECT_FALSE(contains(text, "Note:"));
}

TEST(NetReport, SaysTheReasonOnce) {
  LinkReport report = example();
  report.transports.erase(report.transports.begin() + 1);
  report.chosen = LinkTransport::kTcp;
  report.chosen_description = "tcp, because the peer has no RDMA device";
  report.chosen_reason = "the peer has no RDMA device";
  EXPECT_TRUE(
      contains(link_text(report), "recua uses tcp, because the peer has no RDMA device.\n"));
}

TEST(NetReport, IsPlainWhenNothingCouldBeMeasured) {
  LinkReport report = example();
  report.transports.resize(1);
  const std::string text = link_text(report);
  EXPECT_FALSE(contains(text, "microseconds"));
  EXPECT_TRUE(contains(text, "not available"));
}

TEST(NetReport, NotesThatAnotherTransportWasFaster) {
  LinkReport report = example();
  for (auto& latency : report.transports[1].latency) latency.p50 = nanoseconds(4'000'000);
  ASSERT_TRUE(slower_note(report).has_value());
  EXPECT_EQ(*slower_note(report),
            "tcp was faster in this measurement: 8 KiB took 12.3 us against 4000 us");
  EXPECT_TRUE(contains(link_text(report), "Note: tcp was faster"));
}

TEST(NetReport, SaysHowTheLinkOfEverythingFailed) {
  LinkReport report = example();
  report.chosen_description.clear();
  report.chosen_reason = "the peer broke the rules";
  EXPECT_TRUE(contains(link_text(report), "failed: the peer broke the rules\n"));
  const nlohmann::json json = nlohmann::json::parse(link_json(report));
  EXPECT_TRUE(json["chosen"]["transport"].is_null());
  EXPECT_EQ(json["chosen"]["reason"], "the peer broke the rules");
}

TEST(NetReport, HasAStableJsonForm) {
  const nlohmann::json json = nlohmann::json::parse(link_json(example()));
  EXPECT_EQ(json["worker"]["address"], "10.0.0.5:7500");
  EXPECT_EQ(json["worker"]["name"], "box1:7500");
  EXPECT_EQ(json["worker"]["version"], "0.1.0");
  ASSERT_EQ(json["transports"].size(), 3U);
  EXPECT_EQ(json["transports"][0]["transport"], "shm");
  EXPECT_EQ(json["transports"][0]["available"], false);
  EXPECT_EQ(json["transports"][0]["reason"], "the peer is on another host");
  EXPECT_TRUE(json["transports"][0]["description"].is_null());
  EXPECT_TRUE(json["transports"][0]["bandwidth"].is_null());
  const nlohmann::json& rdma = json["transports"][1];
  EXPECT_EQ(rdma["transport"], "rdma");
  EXPECT_TRUE(rdma["reason"].is_null());
  EXPECT_EQ(rdma["latency"][1]["bytes"], 8192);
  EXPECT_EQ(rdma["latency"][1]["n_samples"], 1000);
  EXPECT_DOUBLE_EQ(rdma["latency"][1]["p50_us"], 2.35);
  EXPECT_DOUBLE_EQ(rdma["latency"][1]["p99_us"], 4.7);
  EXPECT_EQ(rdma["bandwidth"]["window"], 8);
  EXPECT_EQ(rdma["bandwidth"]["n_messages"], 500);
  EXPECT_DOUBLE_EQ(rdma["bandwidth"]["bytes_per_second"], 1.15e10);
  EXPECT_EQ(json["chosen"]["transport"], "rdma");
  EXPECT_EQ(json["chosen"]["reason"], "RDMA comes before TCP");
  EXPECT_TRUE(json["note"].is_null());
}

TEST(NetReport, WritesForeignNamesThatAreNoUtf8) {
  LinkReport report = example();
  report.name = "box\xff";
  EXPECT_NO_THROW(EXPECT_FALSE(nlohmann::json::parse(link_json(report)).empty()));
}

TEST(NetReport, ReadsListsOfTransports) {
  using Transports = std::vector<LinkTransport>;
  EXPECT_EQ(*parse_link_transports("auto"),
            (Transports{LinkTransport::kSharedMemory, LinkTransport::kRdma, LinkTransport::kTcp}));
  EXPECT_EQ(*parse_link_transports("tcp,rdma"),
            (Transports{LinkTransport::kTcp, LinkTransport::kRdma}));
  EXPECT_EQ(*parse_link_transports("tcp,tcp"), (Transports{LinkTransport::kTcp}));
  for (const char* const text : {"", "roce", "tcp,", "shm rdma"}) {
    const auto parsed = parse_link_transports(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
    EXPECT_TRUE(contains(parsed.error().message, "--transport is '" + std::string(text) + "'"));
  }
}

TEST(NetReport, NamesSizesByTheirLargestWholeUnit) {
  EXPECT_EQ(size_text(64), "64 B");
  EXPECT_EQ(size_text(1000), "1000 B");
  EXPECT_EQ(size_text(1024), "1 KiB");
  EXPECT_EQ(size_text(1536), "1536 B");
  EXPECT_EQ(size_text(1 << 20), "1 MiB");
  EXPECT_EQ(size_text((1 << 20) + 1024), "1025 KiB");
}

}  // namespace
}  // namespace recua::cli
