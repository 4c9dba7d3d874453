// A whole session (handshake, load from the worker's own file, channels, two steps) as a
// coordinator of the first protocol version spoke it, replayed against today's worker: old
// coordinators go on working. tests/golden/transcripts/README.md tells how the recording was made.
#include <algorithm>
#include <cstdlib>

#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "cluster/step_codec.h"
#include "net/recording_connection.h"
#include "rpc/frame.h"
#include "rpc/recua.pb.h"
#include "rpc/tensor_header.h"
#include "sim_cluster.h"

namespace recua {
namespace {

namespace asio = net::asio;

const std::filesystem::path kGolden = RECUA_GOLDEN_DIR;
const std::filesystem::path kStories = kGolden / "models" / "stories260K.gguf";
const std::filesystem::path kFolder = kGolden / "transcripts" / "v1";
const std::vector<model::TokenId> kPrompt = {1, 403, 407, 261, 378};

/// The network of the coordinator, with every connection recorded: control, then the channel to the
/// worker, then the channel from it.
class RecordingNetwork final : public net::Network {
 public:
  explicit RecordingNetwork(net::Network& inner) : inner_(inner) {}
  asio::awaitable<Result<std::unique_ptr<net::Connection>>> connect(
      net::Endpoint endpoint, net::Duration timeout) override {
    auto connection = co_await inner_.connect(endpoint, timeout);
    if (!connection.ok()) co_return connection;
    transcripts.push_back(std::make_shared<net::Transcript>());
    co_return net::record(std::move(*connection), transcripts.back());
  }
  Result<std::unique_ptr<net::Listener>> listen(const net::Endpoint& endpoint) override {
    return inner_.listen(endpoint);
  }
  std::vector<std::shared_ptr<net::Transcript>> transcripts;

 private:
  net::Network& inner_;
};

constexpr const char* kNames[] = {"session_control", "session_steps", "session_results"};

TEST(SessionTranscript, Records) {
  if (std::getenv("RECUA_RECORD_TRANSCRIPTS") == nullptr) {
    GTEST_SKIP() << "skipped: set RECUA_RECORD_TRANSCRIPTS to record";
  }
  SimCluster cluster({.seed = 1, .n_workers = 1, .model = kStories});
  RecordingNetwork network(cluster.network().host("home"));
  ASSERT_TRUE(cluster.open(&network).ok());
  ASSERT_TRUE(cluster.generate(kPrompt, 2).ok());
  cluster.close();
  ASSERT_EQ(network.transcripts.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    const std::string name = kNames[i];
    ASSERT_TRUE(
        write_file_atomically(kFolder / (name + "_sent.bin"), network.transcripts[i]->sent).ok());
    ASSERT_TRUE(
        write_file_atomically(kFolder / (name + "_received.bin"), network.transcripts[i]->received)
            .ok());
  }
}

std::vector<std::byte> load(const std::string& name) {
  const Result<std::string> text = read_file(kFolder / name, std::size_t{8} << 20);
  RECUA_CHECK(text.ok());
  const auto bytes = as_bytes(*text);
  return {bytes.begin(), bytes.end()};
}

/// The recorded frames of one direction.
std::vector<std::vector<std::byte>> frames_of(const std::vector<std::byte>& bytes) {
  std::vector<std::vector<std::byte>> frames;
  std::span<const std::byte> rest = bytes;
  while (rest.size() >= rpc::kFrameHeaderBytes) {
    const auto header =
        rpc::decode_frame_header(rest.first<rpc::kFrameHeaderBytes>(), rpc::kFrameBytesMax);
    RECUA_CHECK(header.ok());
    const std::size_t n = rpc::kFrameHeaderBytes + header->payload_bytes;
    frames.emplace_back(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(n));
    rest = rest.subspan(n);
  }
  return frames;
}

/// Tokens in the result messages that follow the handshake frame, from a stream's bytes.
std::vector<model::TokenId> tokens_in(std::span<const std::byte> messages) {
  std::vector<model::TokenId> tokens;
  while (messages.size() >= rpc::kTensorHeaderBytes) {
    const auto header = rpc::decode_tensor_header(messages.first<rpc::kTensorHeaderBytes>());
    RECUA_CHECK(header.ok());
    EXPECT_EQ(header->kind, rpc::MessageKind::kResult);
    const auto result = cluster::decode_result(
        messages.subspan(rpc::kTensorHeaderBytes, header->descriptor_bytes), {}, 512);
    RECUA_CHECK(result.ok());
    for (const model::StepOutput& output : result->outputs) tokens.push_back(output.id);
    messages = messages.subspan(rpc::kTensorHeaderBytes + header->descriptor_bytes);
  }
  return tokens;
}

struct Replay {
  net::Env env;
  std::vector<model::TokenId> tokens;

  asio::awaitable<Result<std::unique_ptr<net::Connection>>> connect() {
    net::Endpoint endpoint{.host = SimCluster::worker_name(0), .port = SimCluster::kPort};
    return env.network->connect(endpoint, std::chrono::seconds(5));
  }

  asio::awaitable<Result<bool>> run() {
    RECUA_CO_ASSIGN_OR_RETURN(const auto control, co_await connect());
    const auto script = frames_of(load("session_control_sent.bin"));
    std::size_t next = 0;
    RECUA_CO_RETURN_IF_ERROR(co_await control->write(script[next++]));  // Hello
    RECUA_CO_ASSIGN_OR_RETURN(rpc::Frame welcome,
                              co_await rpc::read_frame(*control, rpc::kFrameBytesMax));
    EXPECT_EQ(welcome.kind, rpc::FrameKind::kWelcome);
    RECUA_CO_RETURN_IF_ERROR(co_await control->write(script[next++]));  // LoadSlice
    RECUA_CO_ASSIGN_OR_RETURN(const wire::ControlMessage loaded, co_await read_reply(*control));
    EXPECT_TRUE(loaded.has_loaded()) << loaded.ShortDebugString();
    RECUA_CO_ASSIGN_OR_RETURN(const auto steps, co_await connect());
    const auto steps_bytes = load("session_steps_sent.bin");
    const std::size_t hello = first_frame(steps_bytes);
    const std::span<const std::byte> steps_hello = std::span(steps_bytes).first(hello);
    RECUA_CO_RETURN_IF_ERROR(co_await steps->write(steps_hello));
    RECUA_CO_RETURN_IF_ERROR(co_await rpc::read_frame(*steps, rpc::kFrameBytesMax));
    RECUA_CO_ASSIGN_OR_RETURN(const auto results, co_await connect());
    const auto results_bytes = load("session_results_sent.bin");
    const std::span<const std::byte> results_hello =
        std::span(results_bytes).first(first_frame(results_bytes));
    RECUA_CO_RETURN_IF_ERROR(co_await results->write(results_hello));
    RECUA_CO_RETURN_IF_ERROR(co_await rpc::read_frame(*results, rpc::kFrameBytesMax));

    RECUA_CO_RETURN_IF_ERROR(co_await control->write(script[next++]));  // StartSession
    RECUA_CO_ASSIGN_OR_RETURN(const wire::ControlMessage started, co_await read_reply(*control));
    EXPECT_TRUE(started.has_done()) << started.ShortDebugString();
    const std::span<const std::byte> messages = std::span(steps_bytes).subspan(hello);
    RECUA_CO_RETURN_IF_ERROR(co_await steps->write(messages));

    const auto recorded = load("session_results_received.bin");
    std::vector<std::byte> got(recorded.size() - first_frame(recorded));
    const std::span<std::byte> into = got;
    RECUA_CO_RETURN_IF_ERROR(co_await results->read(into));
    tokens = tokens_in(got);
    RECUA_CO_RETURN_IF_ERROR(co_await control->write(script[next++]));  // CloseSession
    RECUA_CO_ASSIGN_OR_RETURN(const wire::ControlMessage closed, co_await read_reply(*control));
    EXPECT_TRUE(closed.has_done());
    co_return true;
  }

  static std::size_t first_frame(const std::vector<std::byte>& bytes) {
    const auto header = rpc::decode_frame_header(std::span(bytes).first<rpc::kFrameHeaderBytes>(),
                                                 rpc::kFrameBytesMax);
    return rpc::kFrameHeaderBytes + header->payload_bytes;
  }

  /// The next reply; requests for chunks, progress and heartbeats come in between.
  static asio::awaitable<Result<wire::ControlMessage>> read_reply(net::Connection& control) {
    while (true) {
      RECUA_CO_ASSIGN_OR_RETURN(rpc::Frame frame,
                                co_await rpc::read_frame(control, rpc::kFrameBytesMax));
      if (frame.kind != rpc::FrameKind::kReply) continue;
      wire::ControlMessage message;
      RECUA_CO_RETURN_IF_ERROR(rpc::parse_payload(frame, "worker", message));
      co_return message;
    }
  }
};

TEST(SessionTranscript, TodaysWorkerServesAnOldCoordinator) {
  SimCluster cluster({.seed = 1, .n_workers = 1, .model = kStories});
  Replay replay{.env = cluster.network().env("old"), .tokens = {}};
  const auto done = cluster.loop().run(replay.run());
  ASSERT_TRUE(done.ok()) << done.error().message;
  const auto recorded = load("session_results_received.bin");
  const std::span<const std::byte> messages =
      std::span(recorded).subspan(Replay::first_frame(recorded));
  EXPECT_EQ(replay.tokens, tokens_in(messages));
  EXPECT_EQ(replay.tokens.size(), 2u);
}

}  // namespace
}  // namespace recua
