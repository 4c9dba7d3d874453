#include "rpc/handshake.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/random.h"
#include "rpc/frame.h"
#include "rpc/handshake_wire.h"
#include "rpc/recua.pb.h"
#include "rpc/test_world.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

using std::chrono::seconds;

constexpr RingShape kRing{.n_slots = 8, .slot_bytes = 4096};

ChannelRequest test_request() {
  ChannelRequest out;
  out.id = {.session = 0x1122, .epoch = 3};
  out.number = 2;
  out.secret.fill(std::byte{0x5a});
  return out;
}

/// What the acceptor makes of a connector that sends these bytes and then says nothing more.
struct Hostile {
  explicit Hostile(std::span<const std::byte> bytes) {
    const auto serving =
        world.start(server_handshake(world.b, *world.server, test_peer("worker"), seconds(5)));
    EXPECT_TRUE(world.loop.run(world.client->write(bytes)).ok());
    result.emplace(world.finish(serving));
    world.settle();
    answer.resize(4096);
    const Result<std::size_t> n = world.client->try_read(answer);
    answer.resize(n.ok() ? *n : 0);
  }
  TestWorld world;
  std::optional<Result<ServerHandshake>> result;
  std::vector<std::byte> answer;

  [[nodiscard]] wire::Reject reject() const {
    wire::Reject out;
    EXPECT_GE(answer.size(), kFrameHeaderBytes);
    const auto payload = std::span(answer).subspan(kFrameHeaderBytes);
    EXPECT_TRUE(out.ParseFromArray(payload.data(), static_cast<int>(payload.size())));
    return out;
  }
};

wire::Hello good_hello() {
  wire::Hello hello;
  hello.set_protocol_version(1);
  hello.set_oldest_version(1);
  hello.set_role(wire::ROLE_CONTROL);
  hello.set_name("coordinator");
  return hello;
}

std::vector<std::byte> framed(const wire::Hello& hello) {
  return *encode_frame(FrameKind::kHello, hello, kFrameBytesMax);
}

TEST(Handshake, IntroducesControlPeersToEachOther) {
  TestWorld world;
  PeerInfo coordinator = test_peer("coordinator");
  coordinator.features = {2, 77};
  const auto serving =
      world.start(server_handshake(world.b, *world.server, test_peer("worker"), seconds(5)));
  const Result<PeerInfo> worker =
      world.loop.run(client_handshake(world.a, *world.client, coordinator, seconds(5)));
  const Result<ServerHandshake> served = world.finish(serving);
  ASSERT_TRUE(worker.ok()) << worker.error().message;
  ASSERT_TRUE(served.ok()) << served.error().message;
  EXPECT_EQ(worker->name, "worker");
  EXPECT_EQ(worker->memory_free_bytes, 1000u);
  EXPECT_EQ(worker->data_types, (std::vector<std::uint32_t>{0, 1, 8}));
  EXPECT_EQ(worker->features, std::vector<std::uint32_t>{2});
  EXPECT_EQ(served->peer.name, "coordinator");
  EXPECT_EQ(served->peer.features, std::vector<std::uint32_t>{2});
  EXPECT_FALSE(served->channel.has_value());
}

TEST(Handshake, TellsOfRdmaPortsAndSharedMemory) {
  TestWorld world;
  PeerInfo worker = test_peer("worker");
  worker.shared_memory_host = "boot-1";
  worker.rdma_ports = {{.device = "mlx5_0", .port = 2, .mtu_bytes = 4096, .gids = {{}, {}}}};
  worker.rdma_ports[0].gids[1][15] = std::byte{5};
  const auto serving = world.start(server_handshake(world.b, *world.server, worker, seconds(5)));
  const Result<PeerInfo> seen =
      world.loop.run(client_handshake(world.a, *world.client, test_peer("c"), seconds(5)));
  ASSERT_TRUE(seen.ok()) << seen.error().message;
  ASSERT_TRUE(world.finish(serving).ok());
  EXPECT_EQ(seen->rdma_ports, worker.rdma_ports);
  EXPECT_EQ(seen->shared_memory_host, "boot-1");
}

TEST(Handshake, StaysWithinAFrameHoweverManyPortsThereAre) {
  TestWorld world;
  PeerInfo worker = test_peer("worker");
  worker.rdma_ports.resize(100, {.device = std::string(300, 'd'), .gids = {}});
  for (RdmaPortInfo& port : worker.rdma_ports) port.gids.resize(300);
  const auto serving = world.start(server_handshake(world.b, *world.server, worker, seconds(5)));
  const Result<PeerInfo> seen =
      world.loop.run(client_handshake(world.a, *world.client, test_peer("c"), seconds(5)));
  ASSERT_TRUE(seen.ok()) << seen.error().message;
  ASSERT_TRUE(world.finish(serving).ok());
  EXPECT_EQ(seen->rdma_ports.size(), 64u);
}

TEST(Handshake, OpensAChannelInEitherDirection) {
  for (const Direction direction : {Direction::kConnectorSends, Direction::kAcceptorSends}) {
    TestWorld world;
    ChannelRequest request = test_request();
    request.direction = direction;
    if (direction == Direction::kAcceptorSends) request.ring = kRing;
    PeerInfo old = test_peer("a");  // Knows no links when the acceptor sends.
    if (direction == Direction::kAcceptorSends) old.features = {1, 2};
    const auto opening =
        world.start(channel_handshake(world.a, *world.client, old, request, seconds(5)));
    Result<ServerHandshake> served =
        world.loop.run(server_handshake(world.b, *world.server, test_peer("b"), seconds(5)));
    ASSERT_TRUE(served.ok()) << served.error().message;
    ASSERT_TRUE(served->channel.has_value());
    EXPECT_EQ(served->channel->id.session, 0x1122u);
    EXPECT_EQ(served->channel->id.epoch, 3u);
    EXPECT_EQ(served->channel->number, 2u);
    EXPECT_EQ(served->channel->direction, direction);
    EXPECT_EQ(served->channel->ring.n_slots, request.ring.n_slots);
    const Secret expected = request.secret;
    ASSERT_TRUE(world.loop
                    .run(accept_channel(world.b, *world.server, test_peer("b"), *served, expected,
                                        kRing, seconds(5)))
                    .ok());
    const Result<ChannelHandshake> ring = world.finish(opening);
    ASSERT_TRUE(ring.ok()) << ring.error().message;
    EXPECT_EQ(ring->ring.n_slots, kRing.n_slots);
    EXPECT_EQ(ring->ring.slot_bytes, kRing.slot_bytes);
    EXPECT_EQ(ring->peer.name, "b");
    EXPECT_EQ(ring->peer.has(Feature::kLinks), direction == Direction::kConnectorSends);
    EXPECT_EQ(served->peer.features, ring->peer.features);
  }
}

TEST(Handshake, RejectsAWrongSecretAndTellsTheConnector) {
  TestWorld world;
  const auto opening = world.start(
      channel_handshake(world.a, *world.client, test_peer("a"), test_request(), seconds(5)));
  Result<ServerHandshake> served =
      world.loop.run(server_handshake(world.b, *world.server, test_peer("b"), seconds(5)));
  ASSERT_TRUE(served.ok());
  Secret expected = test_request().secret;
  expected[15] ^= std::byte{1};
  const Result<void> accepted = world.loop.run(
      accept_channel(world.b, *world.server, test_peer("b"), *served, expected, kRing, seconds(5)));
  EXPECT_EQ(accepted.error().code, ErrorCode::kInvalidArgument);
  const Result<ChannelHandshake> ring = world.finish(opening);
  EXPECT_EQ(ring.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(ring.error().message.find("b:7500: "), std::string::npos) << ring.error().message;
  EXPECT_NE(ring.error().message.find("wrong secret"), std::string::npos);
}

TEST(Handshake, NamesBothVersionsWhenNoneIsCommon) {
  wire::Hello hello = good_hello();
  hello.set_protocol_version(9);
  hello.set_oldest_version(7);
  hello.set_software_version("3.0.0");
  const Hostile hostile(framed(hello));
  EXPECT_EQ(hostile.result->error().code, ErrorCode::kUnsupported);
  const std::string& message = hostile.result->error().message;
  EXPECT_NE(message.find("(recua 3.0.0) speaks 7 to 9"), std::string::npos) << message;
  EXPECT_NE(message.find("worker (recua 0.1.0) speaks 1"), std::string::npos) << message;
  EXPECT_EQ(hostile.reject().code(), wire::ERROR_UNSUPPORTED);
  EXPECT_EQ(hostile.reject().message(), message);
  EXPECT_EQ(hostile.reject().protocol_version(), 1u);
}

TEST(Handshake, SpeaksTheNewestVersionThatBothKnow) {
  wire::Hello hello = good_hello();
  hello.set_protocol_version(9);
  const Hostile hostile(framed(hello));
  ASSERT_TRUE(hostile.result->ok());
  EXPECT_EQ((*hostile.result)->peer.protocol_version, 1u);
}

TEST(Handshake, RefusesAWelcomeInAVersionThatWasNotOffered) {
  TestWorld world;
  const auto greeting =
      world.start(client_handshake(world.a, *world.client, test_peer("coordinator"), seconds(5)));
  wire::Welcome welcome;
  welcome.set_protocol_version(2);
  ASSERT_TRUE(
      world.loop.run(write_frame(*world.server, FrameKind::kWelcome, welcome, kFrameBytesMax))
          .ok());
  EXPECT_EQ(world.finish(greeting).error().code, ErrorCode::kProtocol);
}

TEST(Handshake, AnswersForeignProtocolsInTheirOwnLanguage) {
  const Hostile http(as_bytes("GET /metrics HTTP/1.1\r\nHost: b:7500\r\n\r\n"));
  EXPECT_EQ(http.result->error().code, ErrorCode::kProtocol);
  EXPECT_NE(http.result->error().message.find("an HTTP request"), std::string::npos);
  EXPECT_TRUE(as_text(http.answer).starts_with("HTTP/1.1 400 "));

  const Hostile tls(as_bytes(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) +
                             std::string(500, 'r')));
  EXPECT_NE(tls.result->error().message.find("TLS"), std::string::npos);
  EXPECT_EQ(as_text(tls.answer), std::string_view("\x15\x03\x03\x00\x02\x02\x46", 7));

  const Hostile garbage(as_bytes(std::string(100, '\xee')));
  EXPECT_NE(garbage.result->error().message.find("ee ee"), std::string::npos);
  EXPECT_EQ(garbage.reject().code(), wire::ERROR_PROTOCOL);
}

TEST(Handshake, TimesOutOnEveryTruncatedHello) {
  const std::vector<std::byte> bytes = framed(good_hello());
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    const Hostile hostile{std::span(bytes).first(n)};
    ASSERT_FALSE(hostile.result->ok()) << n;
    EXPECT_EQ(hostile.result->error().code, ErrorCode::kTimeout);
    EXPECT_NE(hostile.result->error().message.find("no Hello from a:"), std::string::npos)
        << hostile.result->error().message;
  }
}

TEST(Handshake, TimesOutWhenTheAcceptorIsSilent) {
  TestWorld world;
  const net::TimePoint start = world.loop.now();
  const Result<PeerInfo> out = world.loop.run(
      client_handshake(world.a, *world.client, test_peer("coordinator"), seconds(5)));
  EXPECT_EQ(out.error().code, ErrorCode::kTimeout);
  EXPECT_EQ(out.error().message, "no Welcome from b:7500 within 5 s");
  EXPECT_EQ(world.loop.now() - start, seconds(5));
}

TEST(Handshake, RefusesFieldsBeyondTheirBounds) {
  const auto refused = [](const std::function<void(wire::Hello&)>& change) {
    wire::Hello hello = good_hello();
    hello.set_role(wire::ROLE_CHANNEL);
    *hello.mutable_channel() = to_wire(test_request());
    change(hello);
    const Hostile hostile(framed(hello));
    EXPECT_FALSE(hostile.result->ok());
    if (hostile.result->ok()) return std::string();
    EXPECT_EQ(hostile.result->error().code, ErrorCode::kProtocol);
    EXPECT_EQ(hostile.reject().code(), wire::ERROR_PROTOCOL);
    return hostile.result->error().message;
  };
  EXPECT_NE(refused([](wire::Hello& h) {
              h.mutable_channel()->set_secret("short");
            }).find("5 bytes, must be 16"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) {
              h.mutable_channel()->set_direction(static_cast<wire::Direction>(7));
            }).find("direction"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) { h.clear_channel(); }).find("role"), std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) { h.set_role(static_cast<wire::Role>(9)); }).find("role 9"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) {
              for (std::uint32_t i = 0; i < 257; ++i) h.add_features(i);
            }).find("features"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) {
              h.mutable_capabilities()->set_shared_memory_host(std::string(65, 'x'));
            }).find("shared_memory_host"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) {
              for (int i = 0; i < 65; ++i) h.mutable_capabilities()->add_rdma_devices();
            }).find("65 entries, at most 64"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) {
              wire::RdmaDevice& device = *h.mutable_capabilities()->add_rdma_devices();
              for (int i = 0; i < 257; ++i) device.add_gids(std::string(16, 'x'));
            }).find("257 GIDs, at most 256"),
            std::string::npos);
  EXPECT_NE(refused([](wire::Hello& h) {
              h.mutable_capabilities()->add_rdma_devices()->add_gids(std::string(15, 'x'));
            }).find("a GID of 15 bytes, must have 16"),
            std::string::npos);
  const auto with_ring = [&](std::uint32_t n_slots, std::uint64_t slot_bytes) {
    return refused([&](wire::Hello& h) {
      h.mutable_channel()->set_direction(wire::DIRECTION_ACCEPTOR_SENDS);
      h.mutable_channel()->mutable_ring()->set_n_slots(n_slots);
      h.mutable_channel()->mutable_ring()->set_slot_bytes(slot_bytes);
    });
  };
  EXPECT_NE(with_ring(0, 4096).find("n_slots is 0"), std::string::npos);
  EXPECT_NE(with_ring(1u << 31, 4096).find("n_slots"), std::string::npos);
  EXPECT_NE(with_ring(4, 63).find("slot_bytes is 63"), std::string::npos);
  EXPECT_NE(with_ring(4, ~std::uint64_t{0}).find("slot_bytes"), std::string::npos);
}

TEST(Handshake, CutsAndCleansNames) {
  wire::Hello hello = good_hello();
  hello.set_name("\x1b[31mred\n" + std::string(1000, 'x'));
  const Hostile hostile(framed(hello));
  ASSERT_TRUE(hostile.result->ok());
  const std::string& name = (*hostile.result)->peer.name;
  EXPECT_TRUE(name.starts_with("?[31mred?xxx")) << name;
  EXPECT_EQ(name.size(), 256u);
  EXPECT_EQ(wire_text("a\xc3\xa4\xff z\xe2\x82", 100), "a\xc3\xa4? z??");
  EXPECT_EQ(wire_text("\xc3\xa4\xc3\xa4", 3), "\xc3\xa4");
}

TEST(Handshake, ComparesWholeSecrets) {
  Secret a{};
  for (std::size_t i = 0; i < a.size(); ++i) {
    Secret b{};
    b[i] = std::byte{1};
    EXPECT_FALSE(secrets_equal(a, b));
  }
  EXPECT_TRUE(secrets_equal(a, Secret{}));
}

// Whatever bytes come, the acceptor answers or times out; nothing else happens.
TEST(Handshake, SurvivesRandomDamage) {
  const std::vector<std::byte> good = framed(good_hello());
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    std::vector<std::byte> bytes = good;
    for (int i = 0; i < 3; ++i) bytes[rng.below(bytes.size())] = static_cast<std::byte>(rng.next());
    const Hostile hostile(bytes);
  }
}

}  // namespace
}  // namespace recua::rpc
