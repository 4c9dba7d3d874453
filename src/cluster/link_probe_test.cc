// A worker and whoever measures the link to it, in the simulation and over real sockets.
#include "cluster/link_probe.h"

#include <algorithm>
#include <optional>
#include <random>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include "base/scratch_folder.h"
#include "cluster/echo_link.h"
#include "cluster/echo_session.h"
#include "cluster/offload.h"
#include "cluster/wire.h"
#include "cluster/worker.h"
#include "net/real_clock.h"
#include "net/sim/sim_network.h"
#include "net/tcp/tcp_network.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint16_t kPort = 7500;

DeviceFactory no_device() {
  return []() -> Result<std::unique_ptr<compute::Device>> {
    return Error{ErrorCode::kUnsupported, "nothing is computed here"};
  };
}

ProbeOptions quick_options(net::Endpoint worker) {
  ProbeOptions options;
  options.worker = std::move(worker);
  options.sizes = {64, 8192};
  options.bandwidth_bytes = 65536;
  options.duration = milliseconds(20);
  return options;
}

class LinkProbe : public testing::Test {
 protected:
  explicit LinkProbe() {
    WorkerOptions options;
    options.name = "box";
    options.cache_dir = scratch.path();
    options.memory_bytes = std::uint64_t{1} << 30;
    worker = std::make_unique<Worker>(network.env("box"), offload, no_device(), options);
    listener = *network.env("box").network->listen(net::Endpoint{"", kPort});
    asio::co_spawn(loop.executor(), worker->serve(*listener), asio::detached);
  }
  ~LinkProbe() override {
    worker->stop();
    listener->close();
    loop.run_for(seconds(1));
  }

  Result<LinkReport> probe(ProbeOptions options, ProbeProgress progress = {}) {
    return loop.run(probe_link(network.env("here"), std::move(options), std::move(progress)));
  }
  Result<std::shared_ptr<EchoPeer>> connect() {
    return loop.run(EchoPeer::connect(network.env("here"), {"box", kPort}, {}, seconds(5), {}));
  }
  static EchoLink::Options link_options() {
    EchoLink::Options options;
    options.transports = {wire::TRANSPORT_TCP};
    options.rows_bytes_max = 4096;
    options.stream_bytes = 1024;
    return options;
  }
  void close(EchoLink& link) { loop.run(link.close()); }

  ScratchFolder scratch;
  net::SimLoop loop;
  net::SimNetwork network{loop, {}};
  InlineOffload offload{loop.executor()};
  std::unique_ptr<Worker> worker;
  std::unique_ptr<net::Listener> listener;
};

TEST_F(LinkProbe, MeasuresTheNetworkThatThereIs) {
  const auto report = probe(quick_options({"box", kPort}));
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->name, "box");
  EXPECT_EQ(report->address, "box:7500");
  ASSERT_EQ(report->transports.size(), 3U);
  const TransportReport& tcp = report->transports[2];
  EXPECT_EQ(tcp.transport, LinkTransport::kTcp);
  EXPECT_TRUE(tcp.available) << tcp.reason;
  ASSERT_EQ(tcp.latency.size(), 2U);
  EXPECT_EQ(tcp.latency[0].bytes, 64U);
  EXPECT_GE(tcp.latency[0].n_samples, 5U);
  // The simulated network delays each way by 10 to 200 us, and by nothing else.
  EXPECT_GE(tcp.latency[0].p50, std::chrono::microseconds(10));
  EXPECT_LE(tcp.latency[0].p99, std::chrono::microseconds(200));
  EXPECT_LE(tcp.latency[0].p50, tcp.latency[0].p99);
  ASSERT_TRUE(tcp.bandwidth.has_value());
  EXPECT_EQ(tcp.bandwidth->bytes, 65536U);
  EXPECT_GE(tcp.bandwidth->n_messages, 2 * kProbeWindow);
  // A window of 8 x 64 KiB per 20 us round trip at most, and 64 KiB on the way at least.
  EXPECT_GT(tcp.bandwidth->bytes_per_second, 1e6);
  EXPECT_LT(tcp.bandwidth->bytes_per_second, 8 * 65536 / 20e-6);
}

TEST_F(LinkProbe, SaysWhyATransportIsNotThere) {
  rpc::LinkPolicy policy;
  policy.no_rdma_reason = "has no card";
  ProbeOptions options = quick_options({"box", kPort});
  options.policy = &policy;
  const auto report = probe(options);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_FALSE(report->transports[0].available);
  EXPECT_NE(report->transports[0].reason.find("does not share memory"), std::string::npos);
  EXPECT_FALSE(report->transports[1].available);
  EXPECT_EQ(report->transports[1].reason, "this end has no card");
  EXPECT_TRUE(report->transports[1].latency.empty());
  EXPECT_EQ(report->chosen, LinkTransport::kTcp);
  EXPECT_EQ(report->chosen_reason, "this end has no card");
}

TEST_F(LinkProbe, TellsItsProgressInOrder) {
  std::vector<std::size_t> done;
  std::vector<std::string> what;
  ProbeOptions options = quick_options({"box", kPort});
  options.transports = {LinkTransport::kTcp};
  const auto report =
      probe(options, [&](std::size_t n_done, std::size_t n_total, const std::string& next) {
        EXPECT_EQ(n_total, 3U);
        done.push_back(n_done);
        what.push_back(next);
      });
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(done, (std::vector<std::size_t>{0, 1, 2}));
  EXPECT_EQ(what, (std::vector<std::string>{"tcp, 64 bytes", "tcp, 8192 bytes", "tcp, bandwidth"}));
}

TEST_F(LinkProbe, LeavesNoSessionBehind) {
  for (std::size_t i = 0; i < 2 * kEchoSessionsMax; ++i) {
    ProbeOptions options = quick_options({"box", kPort});
    options.duration = {};
    options.transports = {LinkTransport::kTcp};
    const auto report = probe(options);
    ASSERT_TRUE(report.ok()) << report.error().message;
  }
}

TEST_F(LinkProbe, RefusesSizesThatFitNoMessage) {
  for (const std::vector<std::uint32_t>& sizes :
       {std::vector<std::uint32_t>{}, {0}, {kProbeBytesMax + 1}}) {
    ProbeOptions options = quick_options({"box", kPort});
    options.sizes = sizes;
    const auto report = probe(options);
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST_F(LinkProbe, NamesTheWorkerThatCannotBeReached) {
  const auto report = probe(quick_options({"nobody", kPort}));
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("worker nobody:7500"), std::string::npos)
      << report.error().message;
}

TEST_F(LinkProbe, SaysThatAWorkerIsTooOld) {
  const auto old_listener = *network.env("old").network->listen(net::Endpoint{"", kPort});
  const auto serve = [](net::Env env, net::Listener& from) -> asio::awaitable<void> {
    auto connection = *co_await from.accept();
    rpc::PeerInfo info;
    info.name = "old";
    info.software_version = "0.0.9";
    info.features = {1, 2};
    const auto handshake = co_await rpc::server_handshake(env, *connection, info, seconds(5));
    EXPECT_TRUE(handshake.ok());
  };
  asio::co_spawn(loop.executor(), serve(network.env("old"), *old_listener), asio::detached);
  const auto report = probe(quick_options({"old", kPort}));
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(report.error().message.find("0.0.9"), std::string::npos) << report.error().message;
}

TEST_F(LinkProbe, EndsWhenTheWorkerDies) {
  ProbeOptions options = quick_options({"box", kPort});
  options.duration = seconds(5);
  options.transports = {LinkTransport::kTcp};
  const auto report = probe(options, [&](std::size_t n_done, std::size_t, const std::string&) {
    if (n_done == 1) network.kill("box");
  });
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(report.error().message.find("worker box:7500"), std::string::npos)
      << report.error().message;
}

TEST_F(LinkProbe, EndsWhenTheWorkerFallsSilent) {
  ProbeOptions options = quick_options({"box", kPort});
  options.duration = seconds(5);
  options.transports = {LinkTransport::kTcp};
  const auto report = probe(options, [&](std::size_t n_done, std::size_t, const std::string&) {
    if (n_done == 1) network.silence("box");
  });
  network.silence("box", false);
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("worker box:7500"), std::string::npos)
      << report.error().message;
}

TEST_F(LinkProbe, TakesAsManySamplesAsItMay) {
  const auto peer = connect();
  ASSERT_TRUE(peer.ok()) << peer.error().message;
  const auto link = loop.run(EchoLink::open(*peer, link_options()));
  ASSERT_TRUE(link.ok()) << link.error().message;
  ASSERT_TRUE(loop.run((*link)->settle()).ok());
  EXPECT_EQ(transport_of((*link)->transport_there()), LinkTransport::kTcp);
  // More messages than slots, so that slots are given back; rows as long as they may be.
  const auto samples = loop.run((*link)->round_trips(4096, seconds(60), 40));
  ASSERT_TRUE(samples.ok()) << samples.error().message;
  EXPECT_EQ(samples->size(), 40U);
  const auto stream = loop.run((*link)->stream(seconds(60), 50));
  ASSERT_TRUE(stream.ok()) << stream.error().message;
  EXPECT_EQ(stream->n_messages, 50U);
  close(**link);
}

TEST_F(LinkProbe, RefusesRingsBeyondTheBounds) {
  const auto peer = connect();
  ASSERT_TRUE(peer.ok()) << peer.error().message;
  EchoLink::Options options = link_options();
  options.window = kEchoSlotsMax + 1;
  auto link = loop.run(EchoLink::open(*peer, options));
  ASSERT_FALSE(link.ok());
  EXPECT_NE(link.error().message.find("open_echo.n_slots is 65"), std::string::npos)
      << link.error().message;
  options = link_options();
  options.rows_bytes_max = static_cast<std::uint32_t>(kEchoSlotBytesMax);
  link = loop.run(EchoLink::open(*peer, options));
  ASSERT_FALSE(link.ok());
  EXPECT_NE(link.error().message.find("open_echo.slot_bytes"), std::string::npos)
      << link.error().message;
}

TEST_F(LinkProbe, TakesOnlyAFewMeasurementsAtOnce) {
  std::vector<std::shared_ptr<EchoPeer>> peers;
  std::vector<std::unique_ptr<EchoLink>> links;
  for (std::size_t i = 0; i < kEchoSessionsMax; ++i) {
    auto peer = connect();
    ASSERT_TRUE(peer.ok()) << peer.error().message;
    peers.push_back(*peer);
    auto link = loop.run(EchoLink::open(*peer, link_options()));
    ASSERT_TRUE(link.ok()) << link.error().message;
    links.push_back(std::move(*link));
  }
  const auto peer = connect();
  ASSERT_TRUE(peer.ok()) << peer.error().message;
  auto link = loop.run(EchoLink::open(*peer, link_options()));
  ASSERT_FALSE(link.ok());
  EXPECT_EQ(link.error().code, ErrorCode::kResourceExhausted);
  close(*links.back());
  link = loop.run(EchoLink::open(*peer, link_options()));
  EXPECT_TRUE(link.ok());
  for (const auto& each : links) close(*each);
  if (link.ok()) close(**link);
}

TEST(LinkTransports, AreReadFromWhatAChannelSaysOfItself) {
  EXPECT_EQ(transport_of("rdma mlx5_0/1 gid 3 (RoCEv2 10.0.0.5) mtu 4096"), LinkTransport::kRdma);
  EXPECT_EQ(transport_of("shared memory"), LinkTransport::kSharedMemory);
  EXPECT_EQ(transport_of("tcp, because the peer has no RDMA device"), LinkTransport::kTcp);
  EXPECT_EQ(reason_of("tcp, because the peer has no RDMA device"), "the peer has no RDMA device");
  EXPECT_EQ(reason_of("tcp"), "");
}

TEST(Quantiles, AreNearestRanks) {
  std::vector<net::Duration> values;
  for (int i = 100; i >= 1; --i) values.emplace_back(i);
  EXPECT_EQ(quantile(values, 0.5), net::Duration(50));
  EXPECT_EQ(quantile(values, 0.99), net::Duration(99));
  EXPECT_EQ(quantile(values, 1.0), net::Duration(100));
  values = {net::Duration(7)};
  EXPECT_EQ(quantile(values, 0.5), net::Duration(7));
  EXPECT_EQ(quantile(values, 0.99), net::Duration(7));
}

TEST(EchoRequests, AreCheckedFieldByField) {
  const auto message = [] {
    wire::OpenEcho out;
    out.set_session(7);
    out.set_epoch(1);
    out.set_secret(std::string(16, 's'));
    out.set_n_slots(8);
    out.set_slot_bytes(4096);
    return out;
  };
  wire::OpenEcho good = message();
  good.add_transports(wire::TRANSPORT_RDMA);
  good.add_transports(static_cast<wire::Transport>(99));  // A newer program's.
  const auto parsed = EchoSession::parse(good);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_TRUE(parsed->rdma);
  EXPECT_FALSE(parsed->shared_memory);
  EXPECT_EQ(parsed->ring_bytes(), 8U * 4096);
  for (const auto& spoil : std::vector<std::function<void(wire::OpenEcho&)>>{
           [](wire::OpenEcho& m) { m.set_secret("short"); },
           [](wire::OpenEcho& m) { m.set_n_slots(0); },
           [](wire::OpenEcho& m) { m.set_n_slots(kEchoSlotsMax + 1); },
           [](wire::OpenEcho& m) { m.set_slot_bytes(63); },
           [](wire::OpenEcho& m) { m.set_slot_bytes(kEchoSlotBytesMax + 1); },
           [](wire::OpenEcho& m) { m.set_slot_bytes(~std::uint64_t{0}); }}) {
    wire::OpenEcho bad = message();
    spoil(bad);
    EXPECT_FALSE(EchoSession::parse(bad).ok());
  }
}

TEST(LinkProbeThreads, MeasureRealSockets) {
  asio::io_context loop{1};
  net::RealClock clock;
  net::TcpNetwork network(loop.get_executor());
  net::Env env;
  env.executor = loop.get_executor();
  env.clock = &clock;
  env.network = &network;
  env.random = [generator = std::make_shared<std::mt19937_64>(1)] { return (*generator)(); };
  ThreadOffload offload(1);
  const ScratchFolder scratch;
  WorkerOptions worker_options;
  worker_options.cache_dir = scratch.path();
  Worker worker(env, offload, no_device(), worker_options);
  const auto listener = *network.listen({.host = "127.0.0.1", .port = 0});
  asio::co_spawn(loop, worker.serve(*listener), asio::detached);
  std::optional<Result<LinkReport>> report;
  const auto run = [&]() -> asio::awaitable<void> {
    ProbeOptions options = quick_options(listener->endpoint());
    options.transports = {LinkTransport::kTcp};
    report = co_await probe_link(env, std::move(options), {});
    worker.stop();
    listener->close();
  };
  asio::co_spawn(loop, run(), asio::detached);
  loop.run();
  ASSERT_TRUE(report.has_value());
  ASSERT_TRUE(report->ok()) << report->error().message;
  const TransportReport& tcp = (*report)->transports[0];
  EXPECT_TRUE(tcp.available) << tcp.reason;
  EXPECT_GE(tcp.latency.at(0).n_samples, 5U);
  EXPECT_GT(tcp.bandwidth->bytes_per_second, 0.0);
}

}  // namespace
}  // namespace recua::cluster
