// What the flags come to on machines with and without RDMA devices.
#include "cli/link_flags.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <gtest/gtest.h>

namespace recua::cli {
namespace {

/// A machine's devices, or why it has none.
class ListProvider final : public net::verbs::Provider {
 public:
  explicit ListProvider(Result<std::vector<net::verbs::DeviceInfo>> devices)
      : devices_(std::move(devices)) {}
  Result<std::vector<net::verbs::DeviceInfo>> devices() override { return devices_; }
  Result<std::unique_ptr<net::verbs::Device>> open(const std::string& name) override {
    return Error{ErrorCode::kNotFound, name};
  }

 private:
  Result<std::vector<net::verbs::DeviceInfo>> devices_;
};

std::unique_ptr<net::verbs::Provider> one_card() {
  net::verbs::PortInfo port{.number = 1,
                            .state = net::verbs::PortState::kActive,
                            .link_layer = net::verbs::LinkLayer::kEthernet,
                            .mtu_bytes = 4096,
                            .message_bytes_max = 1 << 20,
                            .gids = {}};
  net::verbs::GidEntry gid{.index = 3, .interface = "eth0"};
  gid.gid[10] = gid.gid[11] = std::byte{0xff};
  gid.gid[12] = std::byte{10};
  gid.gid[15] = std::byte{5};
  port.gids.push_back(gid);
  net::verbs::DeviceInfo device{
      .name = "mlx5_0", .transport = net::verbs::Transport::kInfiniBand, .ports = {port}};
  return std::make_unique<ListProvider>(std::vector{device});
}
std::unique_ptr<net::verbs::Provider> no_card() {
  return std::make_unique<ListProvider>(std::vector<net::verbs::DeviceInfo>{});
}
std::unique_ptr<net::verbs::Provider> no_rdma() {
  return std::make_unique<ListProvider>(
      Error{ErrorCode::kUnsupported, "this build has no libibverbs"});
}

const Result<Digest> kHost = Digest{};

TEST(LinkFlags, UseWhatThereIsByDefault) {
  const auto setup = make_link_setup(LinkFlags{}, one_card(), kHost);
  ASSERT_TRUE(setup.ok()) << setup.error().message;
  EXPECT_TRUE((*setup)->policy.allow_rdma);
  EXPECT_EQ((*setup)->policy.provider, (*setup)->provider.get());
  EXPECT_TRUE((*setup)->policy.allow_shared_memory);
  EXPECT_EQ((*setup)->shared_memory_host.size(), sizeof(Digest));
  EXPECT_EQ((*setup)->policy.host_identity, (*setup)->shared_memory_host);
  EXPECT_TRUE((*setup)->policy.use_immediate);
  EXPECT_FALSE((*setup)->policy.use_rdma_cm);
  ASSERT_EQ((*setup)->rdma_ports.size(), 1u);
  EXPECT_EQ((*setup)->rdma_ports[0].device, "mlx5_0");
  EXPECT_EQ((*setup)->rdma_ports[0].gids.size(), 1u);
}

TEST(LinkFlags, GoOnWithoutRdmaAndSayWhy) {
  for (const char* transports : {"auto", "rdma", "rdma,shm"}) {
    const LinkFlags flags{.transports = transports};
    const auto none = make_link_setup(flags, no_card(), kHost);
    ASSERT_TRUE(none.ok()) << none.error().message;
    EXPECT_FALSE((*none)->policy.allow_rdma);
    EXPECT_EQ((*none)->policy.provider, nullptr);
    EXPECT_EQ((*none)->policy.no_rdma_reason, "has no RDMA device");
    const auto unsupported = make_link_setup(flags, no_rdma(), kHost);
    ASSERT_TRUE(unsupported.ok());
    EXPECT_EQ((*unsupported)->policy.no_rdma_reason,
              "cannot use RDMA: this build has no libibverbs");
  }
}

TEST(LinkFlags, UseOnlyTheTransportsThatAreNamed) {
  const auto allowed = [](const char* transports) {
    const auto setup = make_link_setup(LinkFlags{.transports = transports}, one_card(), kHost);
    RECUA_CHECK(setup.ok());
    return std::pair((*setup)->policy.allow_rdma, (*setup)->policy.allow_shared_memory);
  };
  EXPECT_EQ(allowed("tcp"), std::pair(false, false));
  EXPECT_EQ(allowed("rdma"), std::pair(true, false));
  EXPECT_EQ(allowed("shm"), std::pair(false, true));
  EXPECT_EQ(allowed("tcp,shm,rdma"), std::pair(true, true));
}

TEST(LinkFlags, GoOnWithoutSharedMemory) {
  const Result<Digest> nowhere = Error{ErrorCode::kUnavailable, "no /proc"};
  const auto setup = make_link_setup(LinkFlags{}, one_card(), nowhere);
  ASSERT_TRUE(setup.ok());
  EXPECT_FALSE((*setup)->policy.allow_shared_memory);
  EXPECT_EQ((*setup)->shared_memory_host, "");
}

TEST(LinkFlags, RefuseWhatIsMalformed) {
  const auto refused = [](const LinkFlags& flags) {
    const auto checked = flags.check();
    EXPECT_FALSE(checked.ok());
    if (checked.ok()) return std::string();
    EXPECT_EQ(checked.error().code, ErrorCode::kInvalidArgument);
    return checked.error().message;
  };
  for (const char* transports : {"", "rdma,", "udp", "RDMA", "auto,,tcp"}) {
    EXPECT_NE(refused({.transports = transports}).find("--transport is '"), std::string::npos);
  }
  EXPECT_NE(refused({.rdma_devices = "mlx5_0,"}).find("--rdma-device"), std::string::npos);
  EXPECT_NE(refused({.rdma_connect = "tcp"}).find("handshake or cm"), std::string::npos);
  EXPECT_NE(refused({.rdma_immediate = "maybe"}).find("on or off"), std::string::npos);
  EXPECT_NE(refused({.delay_us = 1'000'001}).find("at most 1000000"), std::string::npos);
  EXPECT_NE(refused({.transports = "tcp", .rdma_gid = 3}).find("--rdma-gid needs rdma"),
            std::string::npos);
}

TEST(LinkFlags, RefuseADeviceThatIsNotThere) {
  const auto refused = [](const LinkFlags& flags, std::unique_ptr<net::verbs::Provider> provider) {
    const auto setup = make_link_setup(flags, std::move(provider), kHost);
    EXPECT_FALSE(setup.ok());
    if (setup.ok()) return std::string();
    EXPECT_EQ(setup.error().code, ErrorCode::kInvalidArgument);
    return setup.error().message;
  };
  const std::string other = refused({.rdma_devices = "mlx5_9"}, one_card());
  EXPECT_NE(other.find("--rdma-device"), std::string::npos) << other;
  EXPECT_NE(other.find("mlx5_0"), std::string::npos) << other;
  EXPECT_NE(refused({.rdma_devices = "mlx5_0"}, no_rdma()).find("no libibverbs"),
            std::string::npos);
  EXPECT_NE(refused({.rdma_gid = 3}, no_card()).find("no RDMA device"), std::string::npos);
}

TEST(LinkFlags, AreHandedOnToLocalWorkers) {
  const LinkFlags flags{.transports = "rdma",
                        .rdma_devices = "mlx5_0/1",
                        .rdma_gid = 3,
                        .rdma_connect = "cm",
                        .rdma_immediate = "off",
                        .delay_us = 50};
  LinkFlags parsed;
  CLI::App app;
  parsed.add(app);
  std::vector<std::string> arguments = flags.arguments();
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the end.
  app.parse(arguments);
  EXPECT_EQ(parsed.arguments(), flags.arguments());
  EXPECT_EQ(parsed.rdma_gid, 3u);
}

}  // namespace
}  // namespace recua::cli
