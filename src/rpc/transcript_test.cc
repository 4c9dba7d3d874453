// Recorded sessions of each released version against today's code.
// tests/golden/transcripts/README.md tells how they were made; a change that breaks this test
// breaks older programs out there.
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "net/recording_connection.h"
#include "rpc/control.h"
#include "rpc/frame.h"
#include "rpc/tcp_channel.h"
#include "rpc/tensor_header.h"
#include "rpc/test_world.h"

namespace recua::rpc {
namespace {

using std::chrono::seconds;

constexpr RingShape kRing{.n_slots = 4, .slot_bytes = 1024};
constexpr ChannelId kId{.session = 0x1122334455667788, .epoch = 3};

std::filesystem::path folder() {
  return std::filesystem::path(RECUA_GOLDEN_DIR) / "transcripts" / "v1";
}

/// Set to write today's bytes instead of reading the old ones: once per protocol version.
bool recording() { return std::getenv("RECUA_RECORD_TRANSCRIPTS") != nullptr; }

std::vector<std::byte> load(const std::string& name) {
  const Result<std::string> text = read_file(folder() / name, 1 << 20);
  EXPECT_TRUE(text.ok()) << text.error().message;
  if (!text.ok()) return {};
  const auto bytes = as_bytes(*text);
  return {bytes.begin(), bytes.end()};
}

void save(const std::string& name, std::span<const std::byte> bytes) {
  std::filesystem::create_directories(folder());
  const Result<void> written = write_file_atomically(folder() / name, bytes);
  ASSERT_TRUE(written.ok()) << written.error().message;
}

ChannelRequest channel_request() {
  ChannelRequest out;
  out.id = kId;
  out.number = 1;
  out.secret.fill(std::byte{0x42});
  return out;
}

net::asio::awaitable<Result<wire::ControlMessage>> serve(wire::ControlMessage request) {
  if (!request.has_fetch_chunk()) co_return Error{ErrorCode::kUnsupported, "only chunks here"};
  wire::ControlMessage reply;
  reply.mutable_chunk()->set_data(fmt::format("chunk {}", request.fetch_chunk().chunk()));
  co_return reply;
}

/// Today's acceptor of a control connection.
struct Acceptor {
  explicit Acceptor(TestWorld& world) {
    PeerInfo self = test_peer("worker");
    const Result<ServerHandshake> served =
        world.loop.run(server_handshake(world.b, *world.server, self, seconds(5)));
    EXPECT_TRUE(served.ok()) << served.error().message;
    if (!served.ok()) return;
    peer = served->peer;
    ControlHandlers handlers;
    handlers.on_request = serve;
    handlers.on_notice = [this](const wire::ControlMessage& notice) { notices.push_back(notice); };
    control = std::make_unique<ControlConnection>(world.b, std::move(world.server),
                                                  ControlOptions{}, std::move(handlers));
  }
  PeerInfo peer;
  std::vector<wire::ControlMessage> notices;
  std::unique_ptr<ControlConnection> control;
};

wire::ControlMessage fetch(std::uint32_t chunk) {
  wire::ControlMessage out;
  out.mutable_fetch_chunk()->set_session(kId.session);
  out.mutable_fetch_chunk()->set_chunk(chunk);
  out.mutable_fetch_chunk()->set_sha256(std::string(32, 's'));
  return out;
}

/// Today's connector; what it says is the recorded script.
void run_connector(TestWorld& world) {
  const Result<PeerInfo> peer = world.loop.run(
      client_handshake(world.a, *world.client, test_peer("coordinator"), seconds(5)));
  ASSERT_TRUE(peer.ok()) << peer.error().message;
  EXPECT_EQ(peer->name, "worker");
  EXPECT_EQ(peer->memory_free_bytes, 1000u);
  EXPECT_EQ(peer->data_types, (std::vector<std::uint32_t>{0, 1, 8}));
  EXPECT_EQ(peer->features, (std::vector<std::uint32_t>{1, 2}));
  ControlConnection control(world.a, std::move(world.client), {}, {});
  const auto chunk = world.loop.run(control.call(fetch(7), seconds(5)));
  ASSERT_TRUE(chunk.ok()) << chunk.error().message;
  EXPECT_EQ(chunk->chunk().data(), "chunk 7");
  wire::ControlMessage start;
  start.mutable_start_session()->set_session(kId.session);
  start.mutable_start_session()->set_epoch(kId.epoch);
  const auto started = world.loop.run(control.call(start, seconds(5)));
  EXPECT_EQ(started.error().code, ErrorCode::kUnsupported);
  wire::ControlMessage failed;
  failed.mutable_session_failed()->set_session(kId.session);
  failed.mutable_session_failed()->set_epoch(kId.epoch);
  failed.mutable_session_failed()->set_code(wire::ERROR_UNAVAILABLE);
  failed.mutable_session_failed()->set_message("a peer is gone");
  ASSERT_TRUE(control.notify(failed).ok());
  world.settle();
}

TEST(Transcript, RecordsAControlSession) {
  if (!recording()) GTEST_SKIP() << "skipped: set RECUA_RECORD_TRANSCRIPTS to record";
  TestWorld world;
  const auto transcript = std::make_shared<net::Transcript>();
  world.client = net::record(std::move(world.client), transcript);
  // The acceptor answers while the connector runs: first the handshake, then, 2 ms on, requests.
  const auto serving =
      world.start(server_handshake(world.b, *world.server, test_peer("worker"), seconds(5)));
  ControlHandlers handlers;
  handlers.on_request = serve;
  std::unique_ptr<ControlConnection> control;
  world.loop.schedule(world.loop.now() + std::chrono::milliseconds(2), [&] {
    control = std::make_unique<ControlConnection>(world.b, std::move(world.server),
                                                  ControlOptions{}, handlers);
  });
  run_connector(world);
  ASSERT_TRUE(serving->has_value());
  save("control_connector.bin", transcript->sent);
  save("control_acceptor.bin", transcript->received);
}

TEST(Transcript, TodaysAcceptorUnderstandsAnOldConnector) {
  TestWorld world;
  const std::vector<std::byte> bytes = load("control_connector.bin");
  ASSERT_FALSE(bytes.empty());
  ASSERT_TRUE(world.loop.run(world.client->write(bytes)).ok());
  const Acceptor acceptor(world);
  world.settle();
  EXPECT_EQ(acceptor.peer.name, "coordinator");
  EXPECT_EQ(acceptor.peer.protocol_version, 1u);
  EXPECT_EQ(acceptor.peer.features, (std::vector<std::uint32_t>{1, 2}));
  ASSERT_EQ(acceptor.notices.size(), 1u);
  EXPECT_EQ(acceptor.notices[0].session_failed().message(), "a peer is gone");
  EXPECT_EQ(acceptor.notices[0].session_failed().epoch(), 3u);

  // Welcome and both replies come back, the replies with the ids of their requests.
  const auto frame = [&] { return *world.loop.run(read_frame(*world.client, kFrameBytesMax)); };
  EXPECT_EQ(frame().kind, FrameKind::kWelcome);
  wire::ControlMessage reply;
  ASSERT_TRUE(parse_payload(frame(), "b", reply).ok());
  EXPECT_EQ(reply.id(), 1u);
  EXPECT_EQ(reply.chunk().data(), "chunk 7");
  ASSERT_TRUE(parse_payload(frame(), "b", reply).ok());
  EXPECT_EQ(reply.id(), 2u);
  EXPECT_EQ(reply.error().code(), wire::ERROR_UNSUPPORTED);
}

TEST(Transcript, TodaysConnectorUnderstandsAnOldAcceptor) {
  TestWorld world;
  const std::vector<std::byte> bytes = load("control_acceptor.bin");
  ASSERT_FALSE(bytes.empty());
  // Frame by frame, each after the connector said what it answers.
  std::vector<std::span<const std::byte>> frames;
  std::span<const std::byte> rest = bytes;
  while (rest.size() >= kFrameHeaderBytes) {
    const auto header = decode_frame_header(rest.first<kFrameHeaderBytes>(), kFrameBytesMax);
    ASSERT_TRUE(header.ok()) << header.error().message;
    const std::size_t n = kFrameHeaderBytes + header->payload_bytes;
    frames.push_back(rest.first(n));
    rest = rest.subspan(n);
  }
  const auto play =
      [](net::Connection& server,
         std::vector<std::span<const std::byte>> script) -> net::asio::awaitable<Result<void>> {
    for (const std::span<const std::byte> one : script) {
      RECUA_CO_RETURN_IF_ERROR(co_await read_frame(server, kFrameBytesMax));
      RECUA_CO_RETURN_IF_ERROR(co_await server.write(one));
    }
    co_return ok();
  };
  const auto playing = world.start(play(*world.server, frames));
  run_connector(world);
  EXPECT_TRUE(playing->has_value());
}

/// The messages of the recorded channel.
std::vector<std::byte> rows(std::uint32_t n) {
  return std::vector<std::byte>(n * 16, std::byte{7});
}

TEST(Transcript, RecordsAChannel) {
  if (!recording()) GTEST_SKIP() << "skipped: set RECUA_RECORD_TRANSCRIPTS to record";
  TestWorld world;
  const auto transcript = std::make_shared<net::Transcript>();
  world.client = net::record(std::move(world.client), transcript);
  const auto opening = world.start(
      channel_handshake(world.a, *world.client, test_peer("a"), channel_request(), seconds(5)));
  const auto served =
      world.loop.run(server_handshake(world.b, *world.server, test_peer("b"), seconds(5)));
  ASSERT_TRUE(world.loop
                  .run(accept_channel(world.b, *world.server, test_peer("b"), *served,
                                      channel_request().secret, kRing, seconds(5)))
                  .ok());
  ASSERT_TRUE(world.finish(opening).ok());
  std::vector<std::byte> memory(kRing.n_slots * kRing.slot_bytes);
  auto receiver = *make_tcp_receiver(std::move(world.server), kId, kRing, memory);
  auto sender = make_tcp_sender(std::move(world.client), kRing);
  for (std::uint32_t i = 0; i < 6; ++i) {
    const std::vector<std::byte> payload = rows(i);
    TensorHeader header{.session = kId.session, .epoch = kId.epoch, .step = i};
    header.n_rows = i;
    header.row_bytes = 16;
    header.descriptor_bytes = 5;
    header.last = i % 2 == 1;
    ASSERT_TRUE(*sender->try_send({header, payload, as_bytes("hello")}));
    world.settle();
    const auto in = receiver->poll();
    ASSERT_TRUE(in.ok() && *in);
    ASSERT_TRUE(receiver->release((*in)->slot).ok());
    world.settle();
    ASSERT_TRUE(sender->poll().ok());
  }
  save("channel_connector.bin", transcript->sent);
  save("channel_acceptor.bin", transcript->received);
}

TEST(Transcript, TodaysReceiverUnderstandsAnOldSender) {
  TestWorld world;
  const std::vector<std::byte> bytes = load("channel_connector.bin");
  ASSERT_FALSE(bytes.empty());
  ASSERT_TRUE(world.loop.run(world.client->write(bytes)).ok());
  const auto served =
      world.loop.run(server_handshake(world.b, *world.server, test_peer("b"), seconds(5)));
  ASSERT_TRUE(served.ok() && served->channel) << served.error().message;
  EXPECT_EQ(served->channel->number, 1u);
  ASSERT_TRUE(world.loop
                  .run(accept_channel(world.b, *world.server, test_peer("b"), *served,
                                      channel_request().secret, kRing, seconds(5)))
                  .ok());
  std::vector<std::byte> memory(kRing.n_slots * kRing.slot_bytes);
  auto receiver = *make_tcp_receiver(std::move(world.server), kId, kRing, memory);
  for (std::uint32_t i = 0; i < 6; ++i) {
    world.settle();
    const auto in = receiver->poll();
    ASSERT_TRUE(in.ok()) << in.error().message;
    ASSERT_NE(*in, nullptr);
    EXPECT_EQ((*in)->header.step, i);
    EXPECT_EQ((*in)->header.last, i % 2 == 1);
    const std::vector<std::byte> expected = rows(i);
    EXPECT_TRUE(
        std::equal((*in)->rows.begin(), (*in)->rows.end(), expected.begin(), expected.end()));
    EXPECT_EQ(as_text((*in)->descriptor), "hello");
    ASSERT_TRUE(receiver->release((*in)->slot).ok());
  }
}

TEST(Transcript, TodaysSenderUnderstandsAnOldReceiver) {
  const std::vector<std::byte> bytes = load("channel_acceptor.bin");
  ASSERT_GT(bytes.size(), kFrameHeaderBytes);
  const auto header =
      decode_frame_header(std::span(bytes).first<kFrameHeaderBytes>(), kFrameBytesMax);
  ASSERT_TRUE(header.ok());
  const std::size_t welcome_bytes = kFrameHeaderBytes + header->payload_bytes;
  TestWorld world;
  const auto opening = world.start(
      channel_handshake(world.a, *world.client, test_peer("a"), channel_request(), seconds(5)));
  ASSERT_TRUE(world.loop.run(world.server->write(std::span(bytes).first(welcome_bytes))).ok());
  const Result<ChannelHandshake> opened = world.finish(opening);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_EQ(opened->ring.n_slots, kRing.n_slots);
  EXPECT_EQ(opened->ring.slot_bytes, kRing.slot_bytes);
  EXPECT_FALSE(opened->peer.has(Feature::kLinks));

  auto sender = make_tcp_sender(std::move(world.client), opened->ring);
  TensorHeader message{.session = kId.session, .epoch = kId.epoch};
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(*sender->try_send({message, {}, {}}));
  EXPECT_EQ(sender->credits(), 0u);
  // The first credit of the recording gives two slots back.
  const auto credit = std::span(bytes).subspan(welcome_bytes, kCreditBytes);
  ASSERT_TRUE(world.loop.run(world.server->write(credit)).ok());
  world.settle();
  ASSERT_TRUE(sender->poll().ok());
  EXPECT_EQ(sender->credits(), 2u);
}

}  // namespace
}  // namespace recua::rpc
