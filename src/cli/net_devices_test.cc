#include "cli/net_devices.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace recua::cli {
namespace {

using net::verbs::DeviceInfo;
using net::verbs::GidEntry;
using net::verbs::GidType;
using net::verbs::LinkLayer;
using net::verbs::PortInfo;
using net::verbs::PortState;
using net::verbs::Transport;

GidEntry gid(std::uint32_t index, std::string_view address, GidType type,
             std::uint8_t prefix_length = 0) {
  return {.index = index,
          .gid = net::verbs::parse_gid(address).value(),
          .type = type,
          .interface = "eth0",
          .prefix_length = prefix_length};
}

PortInfo roce_port() {
  return {.number = 1,
          .state = PortState::kActive,
          .link_layer = LinkLayer::kEthernet,
          .mtu_bytes = 4096,
          .speed_mbit = 100000,
          .message_bytes_max = 1U << 30,
          .gids = {gid(0, "fe80::1", GidType::kRoceV1), gid(1, "fe80::1", GidType::kRoceV2),
                   gid(2, "10.0.0.5", GidType::kRoceV1, 120),
                   gid(3, "10.0.0.5", GidType::kRoceV2, 120)}};
}

DeviceSurvey survey_of(std::vector<PortInfo> ports, Transport transport = Transport::kInfiniBand) {
  DeviceSurvey out;
  out.devices.push_back(
      {.name = "mlx5_0", .transport = transport, .sge_max = 30, .ports = std::move(ports)});
  return out;
}

nlohmann::json json_of(const DeviceSurvey& survey) {
  return nlohmann::json::parse(devices_json(survey));
}

/// The line of the text that begins with this, words separated by one space.
std::string line_of(const DeviceSurvey& survey, std::string_view begin) {
  const std::string text = devices_text(survey);
  std::string words;
  for (const char c : text) {
    if (c == ' ' && !words.empty() && words.back() == ' ') continue;
    words += c;
  }
  std::size_t at = words.starts_with(begin) ? 0 : words.find("\n" + std::string(begin));
  if (at == std::string::npos) return "no line '" + std::string(begin) + "' in:\n" + text;
  if (words[at] == '\n') ++at;
  return words.substr(at, words.find('\n', at) - at);
}

class FixedProvider final : public net::verbs::Provider {
 public:
  explicit FixedProvider(Result<std::vector<DeviceInfo>> answer) : answer_(std::move(answer)) {}
  Result<std::vector<DeviceInfo>> devices() override { return answer_; }
  Result<std::unique_ptr<net::verbs::Device>> open(const std::string&) override {
    return Error{ErrorCode::kUnsupported, "not asked for here"};
  }

 private:
  Result<std::vector<DeviceInfo>> answer_;
};

TEST(NetDevices, ShowAUsablePortWithTheAddressThatIsTaken) {
  const DeviceSurvey survey = survey_of({roce_port()});
  EXPECT_EQ(line_of(survey, "mlx5_0/1 active"),
            "mlx5_0/1 active 100 Gbit/s 4096 Ethernet yes gid 3 (RoCEv2 10.0.0.5)");
  EXPECT_EQ(line_of(survey, "mlx5_0/1 3"), "mlx5_0/1 3 RoCEv2 10.0.0.5/24 eth0 yes first choice");
  const nlohmann::json port = json_of(survey)["devices"][0]["ports"][0];
  EXPECT_EQ(port["state"], "active");
  EXPECT_EQ(port["link_layer"], "Ethernet");
  EXPECT_EQ(port["mtu_bytes"], 4096);
  EXPECT_EQ(port["speed_mbit"], 100000);
  EXPECT_EQ(port["usable"], true);
  EXPECT_EQ(port["gid_index"], 3);
  EXPECT_EQ(port["gids"].size(), 4);
  EXPECT_EQ(port["gids"][3]["address"], "10.0.0.5");
  EXPECT_EQ(port["gids"][3]["type"], "RoCEv2");
  EXPECT_EQ(port["gids"][3]["interface"], "eth0");
  EXPECT_EQ(port["gids"][3]["prefix_length"], 120);
}

TEST(NetDevices, SayOfEachAddressWhyItIsUsedOrNot) {
  const nlohmann::json gids = json_of(survey_of({roce_port()}))["devices"][0]["ports"][0]["gids"];
  EXPECT_EQ(gids[0]["usable"], false);
  EXPECT_NE(gids[0]["reason"].get<std::string>().find("RoCEv1"), std::string::npos);
  EXPECT_EQ(gids[1]["usable"], true);
  EXPECT_NE(gids[1]["reason"].get<std::string>().find("link-local"), std::string::npos);
  EXPECT_EQ(gids[2]["usable"], false);
  EXPECT_EQ(gids[3]["usable"], true);
}

TEST(NetDevices, SayWhyAPortThatIsDownIsNotUsed) {
  PortInfo port = roce_port();
  port.state = PortState::kDown;
  const DeviceSurvey survey = survey_of({port});
  EXPECT_NE(line_of(survey, "mlx5_0/1 down").find(" no "), std::string::npos);
  const nlohmann::json json = json_of(survey)["devices"][0]["ports"][0];
  EXPECT_EQ(json["usable"], false);
  EXPECT_NE(json["reason"].get<std::string>().find("down"), std::string::npos);
  EXPECT_TRUE(json["gid_index"].is_null());
  EXPECT_EQ(json["gids"][3]["usable"], false);
}

TEST(NetDevices, SayWhyAPortWithoutAddressesIsNotUsed) {
  PortInfo port = roce_port();
  port.gids.clear();
  const DeviceSurvey survey = survey_of({port});
  const nlohmann::json json = json_of(survey)["devices"][0]["ports"][0];
  EXPECT_EQ(json["usable"], false);
  EXPECT_NE(json["reason"].get<std::string>().find("GID"), std::string::npos);
  EXPECT_NE(devices_text(survey).find("No port has a GID."), std::string::npos);
}

TEST(NetDevices, ShowInfiniBandPortsWithTheirLids) {
  PortInfo port{.number = 2,
                .state = PortState::kActive,
                .link_layer = LinkLayer::kInfiniBand,
                .mtu_bytes = 4096,
                .speed_mbit = 200000,
                .lid = 17,
                .gids = {gid(0, "fe80::ec0d:9a03:1:2", GidType::kInfiniBand)}};
  const DeviceSurvey survey = survey_of({port});
  const nlohmann::json json = json_of(survey)["devices"][0]["ports"][0];
  EXPECT_EQ(json["port"], 2);
  EXPECT_EQ(json["lid"], 17);
  EXPECT_EQ(json["link_layer"], "InfiniBand");
  EXPECT_EQ(json["gids"][0]["type"], "InfiniBand");
  EXPECT_EQ(json["usable"], true) << json["reason"];
  EXPECT_NE(line_of(survey, "mlx5_0/2").find("InfiniBand"), std::string::npos);
}

TEST(NetDevices, NameIwarp) {
  const DeviceSurvey survey = survey_of({roce_port()}, Transport::kIwarp);
  EXPECT_EQ(json_of(survey)["devices"][0]["transport"], "iWARP");
  EXPECT_NE(line_of(survey, "mlx5_0/1 active").find("iWARP"), std::string::npos);
}

TEST(NetDevices, ShowADeviceWithoutPorts) {
  const DeviceSurvey survey = survey_of({});
  EXPECT_NE(line_of(survey, "mlx5_0").find("no port"), std::string::npos);
  EXPECT_EQ(json_of(survey)["devices"][0]["ports"].size(), 0U);
}

TEST(NetDevices, WriteNamesThatAreNoUtf8) {
  DeviceSurvey survey = survey_of({roce_port()});
  survey.devices[0].name = "mlx\xff";
  EXPECT_EQ(json_of(survey)["devices"].size(), 1U);
}

TEST(NetDevices, WarnOfALowLimitOfLockedMemory) {
  DeviceSurvey survey = survey_of({roce_port()});
  survey.locked_bytes_max = 8U << 20;
  EXPECT_NE(devices_text(survey).find("8.0 MiB"), std::string::npos);
  EXPECT_NE(devices_text(survey).find("ulimit -l"), std::string::npos);
  EXPECT_EQ(json_of(survey)["locked_bytes_max"], 8U << 20);
  survey.locked_bytes_max.reset();
  EXPECT_EQ(devices_text(survey).find("ulimit -l"), std::string::npos);
  EXPECT_TRUE(json_of(survey)["locked_bytes_max"].is_null());
}

TEST(NetDevices, SayWhatIsMissingWithoutLibibverbs) {
  FixedProvider provider(Error{ErrorCode::kUnsupported, "not asked"});
  const auto survey = survey_devices(provider, false, {});
  ASSERT_TRUE(survey.ok());
  const nlohmann::json json = json_of(*survey);
  EXPECT_EQ(json["devices"].size(), 0U);
  EXPECT_NE(json["reason"].get<std::string>().find("libibverbs"), std::string::npos);
  EXPECT_NE(devices_text(*survey).find("libibverbs-dev"), std::string::npos);
}

TEST(NetDevices, SayWhatIsMissingInAKernelWithoutRdma) {
  FixedProvider provider(Error{ErrorCode::kUnsupported, "the kernel has no RDMA"});
  const auto survey = survey_devices(provider, true, {});
  ASSERT_TRUE(survey.ok());
  EXPECT_EQ(json_of(*survey)["reason"], "the kernel has no RDMA");
  EXPECT_NE(devices_text(*survey).find("ib_uverbs"), std::string::npos);
  EXPECT_NE(devices_text(*survey).find("TCP"), std::string::npos);
}

TEST(NetDevices, SayWhatToCheckWhereThereIsNoDevice) {
  FixedProvider provider(std::vector<DeviceInfo>{});
  const auto survey = survey_devices(provider, true, {});
  ASSERT_TRUE(survey.ok());
  EXPECT_NE(survey->reason.find("no RDMA device"), std::string::npos);
  EXPECT_FALSE(survey->advice.empty());
}

TEST(NetDevices, PassOnWhatTheSystemFailedWith) {
  FixedProvider provider(Error{ErrorCode::kIo, "ibv_open_device(mlx5_0): Input/output error"});
  const auto survey = survey_devices(provider, true, {});
  ASSERT_FALSE(survey.ok());
  EXPECT_EQ(survey.error().code, ErrorCode::kIo);
}

}  // namespace
}  // namespace recua::cli
