#include "net/verbs/address.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace recua::net::verbs {
namespace {

Gid gid(std::string_view text) {
  const auto parsed = parse_gid(text);
  EXPECT_TRUE(parsed) << text;
  return parsed.value_or(Gid{});
}

GidEntry entry(std::uint32_t index, std::string_view address, GidType type = GidType::kRoceV2,
               std::uint8_t prefix_length = 0) {
  return {.index = index,
          .gid = gid(address),
          .type = type,
          .interface = "eth0",
          .prefix_length = prefix_length};
}

PortInfo roce_port(std::uint8_t number, std::vector<GidEntry> gids,
                   PortState state = PortState::kActive) {
  return {.number = number,
          .state = state,
          .link_layer = LinkLayer::kEthernet,
          .mtu_bytes = 4096,
          .speed_mbit = 100'000,
          .message_bytes_max = 1 << 30,
          .gids = std::move(gids)};
}

PortInfo ib_port(std::uint8_t number, std::uint16_t lid, std::string_view address) {
  return {.number = number,
          .state = PortState::kActive,
          .link_layer = LinkLayer::kInfiniBand,
          .mtu_bytes = 4096,
          .speed_mbit = 200'000,
          .lid = lid,
          .message_bytes_max = 1 << 30,
          .gids = {entry(0, address, GidType::kInfiniBand)}};
}

DeviceInfo device(std::string name, std::vector<PortInfo> ports,
                  Transport transport = Transport::kInfiniBand) {
  return {.name = std::move(name),
          .transport = transport,
          .sge_max = 30,
          .send_depth_max = 1024,
          .ports = std::move(ports)};
}

PortAddress roce(std::string name, std::string_view address, std::uint8_t prefix_length = 0,
                 GidType type = GidType::kRoceV2) {
  return {.device = std::move(name),
          .link_layer = LinkLayer::kEthernet,
          .transport = Transport::kInfiniBand,
          .gid = gid(address),
          .gid_type = type,
          .prefix_length = prefix_length};
}

PortAddress infiniband(std::string name, std::uint16_t lid, std::string_view address) {
  return {.device = std::move(name),
          .link_layer = LinkLayer::kInfiniBand,
          .transport = Transport::kInfiniBand,
          .lid = lid,
          .gid = gid(address),
          .gid_type = GidType::kInfiniBand};
}

PortAddress iwarp(std::string name) {
  PortAddress out = roce(std::move(name), "206:7ff:fe00:1::");
  out.transport = Transport::kIwarp;
  out.gid_type = GidType::kInfiniBand;
  return out;
}

std::vector<std::string> names(const std::vector<PortChoice>& choices) {
  std::vector<std::string> out;
  for (const PortChoice& choice : choices) out.push_back(describe(port_address(choice)));
  return out;
}

std::vector<std::string> choose(const std::vector<DeviceInfo>& devices, const PortFilter& filter,
                                std::string_view local_address) {
  const auto chosen = choose_ports(devices, filter, local_address);
  if (!chosen.ok())
    return {fmt::format("{}: {}", to_string(chosen.error().code), chosen.error().message)};
  return names(*chosen);
}

std::vector<std::pair<std::size_t, std::size_t>> pairs(const std::vector<PortAddress>& local,
                                                       const std::vector<PortAddress>& remote,
                                                       std::size_t pairs_max = 8) {
  std::vector<std::pair<std::size_t, std::size_t>> out;
  for (const PortPair& pair : pair_ports(local, remote, pairs_max))
    out.emplace_back(pair.local, pair.remote);
  return out;
}

using Names = std::vector<std::string>;
using Pairs = std::vector<std::pair<std::size_t, std::size_t>>;

// ---- GIDs as text -------------------------------------------------------------------------------

TEST(Gid, IsTextAsItsAddressIs) {
  EXPECT_EQ(to_string(gid("10.0.0.5")), "10.0.0.5");
  EXPECT_EQ(to_string(gid("::ffff:10.0.0.5")), "10.0.0.5");
  EXPECT_EQ(to_string(gid("fd09::1")), "fd09::1");
  EXPECT_EQ(to_string(gid("[fd09::1]")), "fd09::1");
  EXPECT_EQ(to_string(gid("fe80::1%eth0")), "fe80::1");
  EXPECT_EQ(to_string(gid("[fe80::1%eth0]")), "fe80::1");
  EXPECT_EQ(gid("10.0.0.5")[15], std::byte{5});
  EXPECT_EQ(gid("10.0.0.5")[11], std::byte{0xff});
}

TEST(Gid, IsNotMadeFromOtherText) {
  for (const std::string_view text : {"", "host", "10.0.0", "10.0.0.256", "[fd09::1", "fd09:::1",
                                      "10.0.0.5:7500", "[]", "%eth0", "1.2.3.4 "}) {
    EXPECT_FALSE(parse_gid(text)) << text;
  }
}

TEST(Gid, KnowsIpv4AndLinkLocal) {
  EXPECT_TRUE(is_ipv4(gid("10.0.0.5")));
  EXPECT_FALSE(is_ipv4(gid("fd09::ffff:10.0.0.5")));
  EXPECT_FALSE(is_ipv4(gid("::10.0.0.5")));
  EXPECT_TRUE(is_link_local(gid("fe80::1")));
  EXPECT_TRUE(is_link_local(gid("febf::1")));
  EXPECT_FALSE(is_link_local(gid("fec0::1")));
  EXPECT_FALSE(is_link_local(gid("fd09::1")));
  EXPECT_TRUE(is_link_local(gid("169.254.3.4")));
  EXPECT_FALSE(is_link_local(gid("169.253.3.4")));
}

// ---- Which port and GID -------------------------------------------------------------------------

TEST(DeviceList, HasNamesWithOptionalPorts) {
  const auto list = parse_device_list("mlx5_0,mlx5_1/2,rxe-a.1/255");
  ASSERT_TRUE(list.ok()) << list.error().message;
  EXPECT_EQ(*list, (Names{"mlx5_0", "mlx5_1/2", "rxe-a.1/255"}));
  EXPECT_EQ(*parse_device_list("mlx5_0/01"), (Names{"mlx5_0/1"}));
}

TEST(DeviceList, RefusesWhatIsNoNameOrPort) {
  for (const std::string_view text : {"", ",", "mlx5_0,", "mlx5_0/", "mlx5_0/0", "mlx5_0/256", "/1",
                                      "mlx5_0/1/2", "mlx5_0/x", "a b", "mlx5_0/-1", "mlx5_0:1"}) {
    const auto list = parse_device_list(text);
    ASSERT_FALSE(list.ok()) << text;
    EXPECT_EQ(list.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(list.error().message.find(fmt::format("in \"{}\" is no RDMA device", text)),
              std::string::npos)
        << list.error().message;
  }
}

TEST(Ports, AreUnusableForAReason) {
  const auto why = [](const DeviceInfo& info) {
    return why_unusable(info, info.ports[0]).value_or("usable");
  };
  const std::vector<GidEntry> gids = {entry(0, "10.0.0.1")};
  EXPECT_EQ(why(device("d", {roce_port(1, gids)})), "usable");
  EXPECT_EQ(why(device("d", {roce_port(1, gids, PortState::kDown)})), "port is down");
  EXPECT_EQ(why(device("d", {roce_port(1, gids, PortState::kInit)})),
            "port is initializing: is a subnet manager running?");
  EXPECT_EQ(why(device("d", {roce_port(1, gids, PortState::kArmed)})),
            "port is armed but not active");
  EXPECT_EQ(why(device("d", {roce_port(1, gids, PortState::kUnknown)})),
            "port is in an unknown state");
  EXPECT_EQ(why(device("d", {roce_port(1, {})})),
            "it has no GID: has its network interface an address?");
  EXPECT_EQ(why(device("d", {roce_port(1, {entry(0, "fe80::1", GidType::kInfiniBand)})})),
            "it has no GID of a usable type, only 0 (InfiniBand fe80::1)");
  EXPECT_EQ(why(device("d", {roce_port(1, {entry(256, "10.0.0.1")})})),
            "it has no GID of a usable type, only 256 (RoCEv2 10.0.0.1)");
  EXPECT_EQ(why(device("d", {ib_port(1, 5, "fe80::1")})), "usable");
  EXPECT_EQ(why(device("d", {ib_port(1, 0, "fe80::1")})),
            "it has no LID: is a subnet manager running?");
  EXPECT_EQ(why(device("d", {roce_port(1, gids)}, Transport::kUnknown)),
            "its transport is neither InfiniBand nor iWARP");
  EXPECT_EQ(why(device("d", {roce_port(1, {entry(0, "fe80::1", GidType::kInfiniBand)})},
                       Transport::kIwarp)),
            "usable");
  DeviceInfo unknown = device("d", {roce_port(1, gids)});
  unknown.ports[0].link_layer = LinkLayer::kUnknown;
  EXPECT_EQ(why(unknown), "its link layer is neither Ethernet nor InfiniBand");
}

// As a ConnectX port lists them: every address as RoCEv1 and as RoCEv2.
const std::vector<GidEntry> kGids = {entry(0, "fe80::1", GidType::kRoceV1),  entry(1, "fe80::1"),
                                     entry(2, "10.0.0.5", GidType::kRoceV1), entry(3, "10.0.0.5"),
                                     entry(4, "10.0.0.6", GidType::kRoceV1), entry(5, "10.0.0.6"),
                                     entry(6, "fd09::5", GidType::kRoceV1),  entry(7, "fd09::5")};

TEST(ChoosePorts, TakesTheGidOfTheConnection) {
  const std::vector<DeviceInfo> devices = {device("mlx5_0", {roce_port(1, kGids)})};
  EXPECT_EQ(choose(devices, {}, "10.0.0.6"), (Names{"mlx5_0/1 gid 5 (RoCEv2 10.0.0.6)"}));
  EXPECT_EQ(choose(devices, {}, "fd09::5"), (Names{"mlx5_0/1 gid 7 (RoCEv2 fd09::5)"}));
  EXPECT_EQ(choose(devices, {}, "fe80::1%eth0"), (Names{"mlx5_0/1 gid 1 (RoCEv2 fe80::1)"}));
}

TEST(ChoosePorts, PrefersIpv4ThenGlobalThenLinkLocalAndRoceV2BeforeV1) {
  const auto first = [](std::vector<GidEntry> gids) {
    return choose({device("d", {roce_port(1, std::move(gids))})}, {}, "192.168.1.1")[0];
  };
  EXPECT_EQ(first(kGids), "d/1 gid 3 (RoCEv2 10.0.0.5)");
  EXPECT_EQ(first({entry(0, "fe80::1"), entry(2, "fd09::5")}), "d/1 gid 2 (RoCEv2 fd09::5)");
  EXPECT_EQ(first({entry(0, "fe80::1"), entry(2, "169.254.1.1")}), "d/1 gid 0 (RoCEv2 fe80::1)");
  EXPECT_EQ(first({entry(0, "10.0.0.5", GidType::kRoceV1), entry(1, "fe80::1")}),
            "d/1 gid 1 (RoCEv2 fe80::1)");
  EXPECT_EQ(first({entry(0, "10.0.0.5", GidType::kRoceV1)}), "d/1 gid 0 (RoCEv1 10.0.0.5)");
}

TEST(ChoosePorts, PutsTheConnectionsPortFirstThenTheFastest) {
  PortInfo slow = roce_port(1, {entry(0, "10.0.1.1")});
  slow.speed_mbit = 25'000;
  PortInfo fast = roce_port(2, {entry(0, "10.0.2.1")});
  fast.speed_mbit = 400'000;
  const std::vector<DeviceInfo> devices = {
      device("a", {slow, fast}), device("b", {roce_port(1, {entry(0, "10.0.3.1")})}),
      device("c", {roce_port(1, {entry(0, "10.0.4.1", GidType::kRoceV1)})}),
      device("d", {roce_port(1, {entry(0, "fe80::1")})})};
  EXPECT_EQ(choose(devices, {}, "10.0.1.1"),
            (Names{"a/1 gid 0 (RoCEv2 10.0.1.1)", "a/2 gid 0 (RoCEv2 10.0.2.1)",
                   "b/1 gid 0 (RoCEv2 10.0.3.1)", "d/1 gid 0 (RoCEv2 fe80::1)",
                   "c/1 gid 0 (RoCEv1 10.0.4.1)"}));
  EXPECT_EQ(choose(devices, {}, "127.0.0.1")[0], "a/2 gid 0 (RoCEv2 10.0.2.1)");
  EXPECT_EQ(choose(devices, {}, "no address")[0], "a/2 gid 0 (RoCEv2 10.0.2.1)");
}

TEST(ChoosePorts, FollowsTheFilter) {
  const std::vector<DeviceInfo> devices = {
      device("a", {roce_port(1, {entry(0, "10.0.1.1")}),
                   roce_port(2, {entry(0, "10.0.2.1"), entry(3, "fd09::2")})}),
      device("b", {roce_port(1, {entry(0, "10.0.3.1")})})};
  EXPECT_EQ(choose(devices, {.devices = {"b", "a/2"}, .gid_index = {}}, "10.0.1.1"),
            (Names{"b/1 gid 0 (RoCEv2 10.0.3.1)", "a/2 gid 0 (RoCEv2 10.0.2.1)"}));
  EXPECT_EQ(choose(devices, {.devices = {"a/2", "a"}, .gid_index = {}}, "10.0.1.1"),
            (Names{"a/2 gid 0 (RoCEv2 10.0.2.1)", "a/1 gid 0 (RoCEv2 10.0.1.1)"}));
  EXPECT_EQ(choose(devices, {.devices = {}, .gid_index = 3}, "10.0.1.1"),
            (Names{"a/2 gid 3 (RoCEv2 fd09::2)"}));
}

TEST(ChoosePorts, SaysWhatIsThereWhenTheFilterNamesWhatIsNot) {
  const std::vector<DeviceInfo> devices = {
      device("a", {roce_port(1, {entry(0, "10.0.1.1")}), roce_port(2, {entry(3, "fd09::2")})})};
  EXPECT_EQ(choose(devices, {.devices = {"mlx5_9"}, .gid_index = {}}, ""),
            (Names{"invalid argument: there is no RDMA port \"mlx5_9\" here; there is: a/1, a/2"}));
  EXPECT_EQ(choose(devices, {.devices = {"a/3"}, .gid_index = {}}, ""),
            (Names{"invalid argument: there is no RDMA port \"a/3\" here; there is: a/1, a/2"}));
  EXPECT_EQ(choose({}, {.devices = {"a"}, .gid_index = {}}, ""),
            (Names{"invalid argument: there is no RDMA port \"a\" here; there is: none"}));
  EXPECT_EQ(choose(devices, {.devices = {}, .gid_index = 7}, ""),
            (Names{"invalid argument: no usable RDMA port: a/1 has no usable GID 7, it has 0 "
                   "(RoCEv2 10.0.1.1); a/2 has no usable GID 7, it has 3 (RoCEv2 fd09::2)"}));
}

TEST(ChoosePorts, SaysOfEachPortWhyItIsUnusable) {
  EXPECT_EQ(choose({}, {}, ""), (Names{"unavailable: there is no RDMA device"}));
  EXPECT_EQ(choose({device("rxa", {roce_port(1, {}, PortState::kDown)}),
                    device("ib", {ib_port(1, 0, "fe80::1")})},
                   {}, "10.0.0.1"),
            (Names{"unavailable: no usable RDMA port: rxa/1: port is down; ib/1: it has no LID: is "
                   "a subnet manager running?"}));
  // A port that is down may have lost its GIDs: that is why, not the index.
  EXPECT_EQ(choose({device("rxa", {roce_port(1, {}, PortState::kDown)})},
                   {.devices = {}, .gid_index = 1}, "10.0.0.1"),
            (Names{"unavailable: no usable RDMA port: rxa/1: port is down"}));
}

// ---- Which ports of two machines ----------------------------------------------------------------

TEST(PairPorts, FollowsNetworksWhateverTheOrder) {
  const std::vector<PortAddress> local = {roce("a0", "10.0.1.1", 120), roce("a1", "10.0.2.1", 120),
                                          roce("a2", "10.0.3.1", 120)};
  const std::vector<PortAddress> remote = {roce("b0", "10.0.3.2", 120), roce("b1", "10.0.1.2", 120),
                                           roce("b2", "10.0.9.2", 120)};
  EXPECT_EQ(pairs(local, remote), (Pairs{{0, 1}, {2, 0}}));
  EXPECT_EQ(pairs(local, remote, 1), (Pairs{{0, 1}}));
  EXPECT_EQ(pairs(local, remote, 0), Pairs{});
}

TEST(PairPorts, UsesEachPortOnce) {
  const std::vector<PortAddress> two = {roce("a0", "10.0.1.1", 120), roce("a1", "10.0.1.2", 120)};
  const std::vector<PortAddress> three = {roce("b0", "10.0.1.3", 120), roce("b1", "10.0.1.4", 120),
                                          roce("b2", "10.0.1.5", 120)};
  EXPECT_EQ(pairs(two, three), (Pairs{{0, 0}, {1, 1}}));
  EXPECT_EQ(pairs(three, two), (Pairs{{0, 0}, {1, 1}}));
}

TEST(PairPorts, TakesThePrefixOfEitherSideToTheBit) {
  const auto matches = [](std::uint8_t a, std::uint8_t b) {
    // Apart in the sixth of the last eight bits; the second port keeps routing out of it.
    return !pairs({roce("x", "1.1.1.1", 128), roce("a", "10.0.0.8", a)},
                  {roce("y", "fd00::1", 128), roce("b", "10.0.0.12", b)})
                .empty();
  };
  EXPECT_TRUE(matches(125, 128));
  EXPECT_TRUE(matches(128, 125));
  EXPECT_FALSE(matches(126, 126));
  EXPECT_TRUE(matches(0, 128));  // Unknown: taken for a /24.
  EXPECT_FALSE(matches(128, 255));
}

TEST(PairPorts, RoutesTheFirstOfBothWhenNothingElseFits) {
  EXPECT_EQ(pairs({roce("a0", "10.0.1.1", 120), roce("a1", "10.0.2.1", 120)},
                  {roce("b0", "10.0.8.2", 120), roce("b1", "10.0.9.2", 120)}),
            (Pairs{{0, 0}}));
  EXPECT_EQ(pairs({roce("a0", "fd01::1", 64)}, {roce("b0", "fd02::1", 64)}), (Pairs{{0, 0}}));
  // RoCEv1 is an Ethernet protocol.
  EXPECT_EQ(pairs({roce("a0", "10.0.1.1", 120, GidType::kRoceV1)},
                  {roce("b0", "10.0.8.2", 120, GidType::kRoceV1)}),
            Pairs{});
}

TEST(PairPorts, PairsLinkLocalOnlyWithLinkLocal) {
  EXPECT_EQ(pairs({roce("a0", "fe80::1", 64)}, {roce("b0", "fe80::2", 64)}), (Pairs{{0, 0}}));
  EXPECT_EQ(pairs({roce("a0", "fe80::1", 64)}, {roce("b0", "fd09::2", 64)}), Pairs{});
  EXPECT_EQ(
      why_no_pair({roce("a0", "fe80::1", 64)}, {roce("b0", "fd09::2", 64)}),
      "the peer's b0/1 has the address fd09::2, ours fe80::1: a link-local one is not routed");
}

TEST(PairPorts, PairsInfiniBandBySubnetPrefix) {
  const std::vector<PortAddress> local = {infiniband("a0", 1, "fec0:0:0:1::a"),
                                          infiniband("a1", 2, "fec0:0:0:2::a")};
  const std::vector<PortAddress> remote = {infiniband("b0", 3, "fec0:0:0:2::b"),
                                           infiniband("b1", 4, "fec0:0:0:1::b")};
  EXPECT_EQ(pairs(local, remote), (Pairs{{0, 1}, {1, 0}}));
}

TEST(PairPorts, DoesNotMixKinds) {
  const auto why = [](const PortAddress& ours, const PortAddress& theirs) {
    EXPECT_TRUE(pair_ports({ours}, {theirs}, 8).empty());
    return why_no_pair({ours}, {theirs});
  };
  EXPECT_EQ(why(roce("rxa", "10.0.0.1"), infiniband("mlx5_0", 5, "fe80::1")),
            "the peer's mlx5_0/1 is InfiniBand, ours is Ethernet");
  EXPECT_EQ(why(infiniband("mlx5_0", 5, "fe80::1"), roce("rxa", "10.0.0.1")),
            "the peer's rxa/1 is Ethernet, ours is InfiniBand");
  EXPECT_EQ(why(roce("rxa", "10.0.0.1"), iwarp("cxgb4_0")),
            "the peer's cxgb4_0/1 is iWARP, ours is not");
  EXPECT_EQ(why(iwarp("cxgb4_0"), roce("rxa", "10.0.0.1")),
            "the peer's rxa/1 is not iWARP, ours is");
  EXPECT_EQ(why(roce("rxa", "10.0.0.1"), roce("rxb", "10.0.0.2", 0, GidType::kRoceV1)),
            "the peer's rxb/1 speaks RoCEv1, ours RoCEv2");
  EXPECT_EQ(why(roce("rxa", "10.0.0.1"), roce("rxb", "fd09::2")),
            "the peer's rxb/1 has the address fd09::2, ours 10.0.0.1: not of the same IP version");
  EXPECT_EQ(why(roce("rxa", "10.0.0.1", 0, GidType::kRoceV1),
                roce("rxb", "10.0.9.2", 0, GidType::kRoceV1)),
            "the peer's rxb/1 has the address 10.0.9.2, ours 10.0.0.1: not of one network, and "
            "RoCEv1 is not routed");
}

TEST(PairPorts, ConnectsIwarpByTheFirstPortsOnly) {
  EXPECT_EQ(pairs({iwarp("a0"), iwarp("a1")}, {iwarp("b0"), iwarp("b1")}), (Pairs{{0, 0}}));
}

TEST(PairPorts, SaysWhoHasNoPort) {
  EXPECT_EQ(why_no_pair({}, {roce("b0", "10.0.0.1")}), "there is no RDMA port here");
  EXPECT_EQ(why_no_pair({roce("a0", "10.0.0.1")}, {}), "the peer has no RDMA port");
}

// ---- The way to a peer --------------------------------------------------------------------------
// InfiniBand links cannot be had in the lab, so these vectors are what stands for them.

PortChoice choice_of(const DeviceInfo& info, std::string_view local_address = "") {
  auto chosen = choose_ports({info}, {}, local_address);
  EXPECT_TRUE(chosen.ok()) << chosen.error().message;
  return chosen->front();
}

TEST(MakeAddress, HasAGrhForRoce) {
  const PortChoice local =
      choice_of(device("mlx5_0", {roce_port(1, {}, PortState::kDown), roce_port(2, kGids)}));
  const AddressVector expected{.port = 2,
                               .is_global = true,
                               .gid = gid("10.0.0.9"),
                               .gid_index = 3,
                               .hop_limit = 64,
                               .traffic_class = 0,
                               .lid = 0,
                               .service_level = 0};
  EXPECT_EQ(make_address(local, roce("mlx5_0", "10.0.0.9")), expected);
}

TEST(MakeAddress, GoesByLidInsideOfAnInfiniBandSubnet) {
  const PortChoice local = choice_of(device("mlx5_0", {ib_port(1, 5, "fe80::a")}));
  const AddressVector expected{.port = 1,
                               .is_global = false,
                               .gid = {},
                               .gid_index = 0,
                               .hop_limit = 64,
                               .traffic_class = 0,
                               .lid = 7,
                               .service_level = 0};
  EXPECT_EQ(make_address(local, infiniband("mlx5_0", 7, "fe80::b")), expected);
}

TEST(MakeAddress, HasLidAndGrhAcrossInfiniBandSubnets) {
  const PortChoice local = choice_of(device("mlx5_0", {ib_port(1, 5, "fec0:0:0:1::a")}));
  const AddressVector expected{.port = 1,
                               .is_global = true,
                               .gid = gid("fec0:0:0:2::b"),
                               .gid_index = 0,
                               .hop_limit = 64,
                               .traffic_class = 0,
                               .lid = 7,
                               .service_level = 0};
  EXPECT_EQ(make_address(local, infiniband("mlx5_0", 7, "fec0:0:0:2::b")), expected);
}

TEST(Describe, NamesPortGidAndAddress) {
  EXPECT_EQ(describe(port_address(choice_of(device("mlx5_0", {roce_port(1, kGids)})))),
            "mlx5_0/1 gid 3 (RoCEv2 10.0.0.5)");
  EXPECT_EQ(describe(infiniband("mlx5_0", 7, "fe80::b")),
            "mlx5_0/1 lid 7 gid 0 (InfiniBand fe80::b)");
}

}  // namespace
}  // namespace recua::net::verbs
