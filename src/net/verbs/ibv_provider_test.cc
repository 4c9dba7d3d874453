// On real devices, Soft-RoCE ones too. Without any the tests say so and are skipped; then the first
// one still shows that asking is safe.
#include "net/verbs/ibv_provider.h"

#include <algorithm>
#include <array>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "net/verbs/ibv_test_pair.h"

namespace recua::net::verbs {
namespace {

TEST(IbvProvider, AnswersOnEveryMachineWithDevicesOrAReason) {
  const auto devices = make_ibv_provider()->devices();
  if (devices.ok()) return;
  EXPECT_FALSE(devices.error().message.empty());
  EXPECT_EQ(devices.error().code, ErrorCode::kUnsupported) << devices.error().message;
  const auto opened = make_ibv_provider()->open("mlx5_0");
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::kUnsupported) << opened.error().message;
}

TEST(IbvProvider, SaysWhatIsBuiltIn) { EXPECT_EQ(built_with_verbs(), !verbs_version().empty()); }

TEST(IbvProvider, NamesTheDevicesThatThereAre) {
  SKIP_WITHOUT_DEVICE();
  const auto opened = make_ibv_provider()->open("no_such_device");
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::kNotFound);
  EXPECT_NE(opened.error().message.find(test_ports()[0].device.name), std::string::npos)
      << opened.error().message;
}

TEST(IbvProvider, FindsPortsAndTheirAddresses) {
  SKIP_WITHOUT_DEVICE();
  for (const TestPort& found : test_ports()) {
    EXPECT_EQ(found.device.transport, Transport::kInfiniBand);
    EXPECT_EQ(found.port.link_layer, LinkLayer::kEthernet);
    EXPECT_GE(found.port.mtu_bytes, 256U);
    EXPECT_GE(found.port.message_bytes_max, std::uint64_t{1} << 20);
    EXPECT_GT(found.port.speed_mbit, 0U);
    EXPECT_GE(found.device.sge_max, 3U);
    EXPECT_GE(found.device.send_depth_max, 64U);
    EXPECT_FALSE(found.gid.interface.empty());
    EXPECT_GT(found.gid.prefix_length, 96) << "an IPv4 prefix counts in bits of the GID";
    // A link-local IPv6 address is always there too.
    EXPECT_GE(found.port.gids.size(), 2U);
  }
}

TEST(IbvProvider, QueriesAPortAsItIsNow) {
  SKIP_WITHOUT_DEVICE();
  const TestPort found = test_ports()[0];
  const auto device = make_ibv_provider()->open(found.device.name);
  ASSERT_TRUE(device.ok()) << device.error().message;
  const auto port = (*device)->query_port(found.port.number);
  ASSERT_TRUE(port.ok()) << port.error().message;
  EXPECT_EQ(port->gids.size(), found.port.gids.size());
  EXPECT_EQ((*device)->query_port(99).error().code, ErrorCode::kInvalidArgument);
}

TEST(IbvQueuePair, ReadsBackTheInlineSize) {
  SKIP_WITHOUT_DEVICE();
  const TestPort found = test_ports()[0];
  EXPECT_EQ(TestEnd(found, {.inline_bytes = 256}).queue_pair->inline_bytes_max(), 256U);
  EXPECT_EQ(TestEnd(found, {.inline_bytes = 0}).queue_pair->inline_bytes_max(), 0U);
  // Far above what any device takes: stepped down to something that works.
  const TestEnd stepped(found, {.inline_bytes = 1U << 20});
  EXPECT_LT(stepped.queue_pair->inline_bytes_max(), 1U << 20);
}

TEST(IbvQueuePair, RefusesWhatTheDeviceCannotDo) {
  SKIP_WITHOUT_DEVICE();
  TestEnd end(test_ports()[0]);
  const auto refused = [&](const QueuePairOptions& options) {
    const auto made = end.domain->create_queue_pair(*end.queue, options);
    return !made.ok() && made.error().code == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused({.port = 77}));
  EXPECT_TRUE(refused({.send_depth = end.port.device.send_depth_max + 1}));
  EXPECT_TRUE(refused({.segments_max = end.port.device.sge_max + 1}));
  EXPECT_EQ(end.device->create_completion_queue(std::size_t{1} << 40).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(end.queue_pair->connect({.address = {}, .mtu_bytes = 1500}).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(end.queue_pair->connect({.address = {}, .retry_count = 7}).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(end.queue_pair->connect({.address = {}, .remote_qp_number = 1U << 24}).error().code,
            ErrorCode::kInvalidArgument);
}

class IbvPair : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<TestPort> ports = test_ports();
    if (ports.empty()) GTEST_SKIP() << "skipped: no RDMA device here";
    a = std::make_unique<TestEnd>(ports[0]);
    b = std::make_unique<TestEnd>(ports[1]);
    for (std::size_t i = 0; i < a->memory.size(); ++i)
      a->memory[i] = static_cast<std::byte>(i * 7 + 1);
  }
  void connect() {
    const auto there = a->connect(*b);
    ASSERT_TRUE(there.ok()) << there.error().message;
    const auto back = b->connect(*a);
    ASSERT_TRUE(back.ok()) << back.error().message;
  }
  [[nodiscard]] bool arrived(std::size_t offset, std::size_t bytes) const {
    return std::equal(a->memory.begin(), a->memory.begin() + static_cast<std::ptrdiff_t>(bytes),
                      b->memory.begin() + static_cast<std::ptrdiff_t>(offset));
  }

  asio::io_context other{1};  // A second loop, which outlives what waits in it.
  std::unique_ptr<TestEnd> a;
  std::unique_ptr<TestEnd> b;
};

TEST_F(IbvPair, DeliversAGatheredWriteWithItsImmediate) {
  connect();
  b->receive(40);
  const std::array<Segment, 2> parts{a->segment(0, 64), a->segment(64, 8128)};
  const SendRequest request{.wr_id = 7,
                            .operation = Operation::kWriteImmediate,
                            .segments = parts,
                            .remote_address = b->address(4096),
                            .rkey = b->region->rkey(),
                            .immediate = 0xdead'beef,
                            .signaled = true};
  ASSERT_TRUE(a->queue_pair->post_send({&request, 1}).ok());

  const Completion arrival = b->wait();
  EXPECT_EQ(arrival.status, Status::kSuccess) << to_string(arrival.status);
  EXPECT_EQ(arrival.kind, CompletionKind::kReceiveImmediate);
  EXPECT_EQ(arrival.wr_id, 40U);
  EXPECT_EQ(arrival.immediate, 0xdead'beefU);
  EXPECT_EQ(arrival.bytes, 8192U);
  EXPECT_TRUE(arrived(4096, 8192));

  const Completion sent = a->wait();
  EXPECT_EQ(sent.status, Status::kSuccess) << to_string(sent.status);
  EXPECT_EQ(sent.kind, CompletionKind::kSend);
  EXPECT_EQ(sent.wr_id, 7U);
}

TEST_F(IbvPair, ChainsAnUnsignaledInlineWriteBeforeASend) {
  connect();
  b->receive(1, b->segment(0, 64));
  const std::vector<std::byte> content(a->memory.begin(), a->memory.begin() + 128);
  const std::array<Segment, 1> data{a->segment(0, 128)};
  const std::array<Segment, 1> word{a->segment(0, 4)};
  const std::array<SendRequest, 2> chain{SendRequest{.wr_id = 1,
                                                     .operation = Operation::kWrite,
                                                     .segments = data,
                                                     .remote_address = b->address(1024),
                                                     .rkey = b->region->rkey(),
                                                     .inline_data = true},
                                         SendRequest{.wr_id = 2,
                                                     .operation = Operation::kSend,
                                                     .segments = word,
                                                     .signaled = true,
                                                     .inline_data = true}};
  ASSERT_TRUE(a->queue_pair->post_send(chain).ok());
  std::fill_n(a->memory.begin(), 128, std::byte{0});  // Inline data is free at once.

  const Completion arrival = b->wait();
  EXPECT_EQ(arrival.status, Status::kSuccess) << to_string(arrival.status);
  EXPECT_EQ(arrival.kind, CompletionKind::kReceive);
  EXPECT_EQ(arrival.bytes, 4U);
  EXPECT_TRUE(std::equal(content.begin(), content.end(), b->memory.begin() + 1024));
  EXPECT_TRUE(std::equal(content.begin(), content.begin() + 4, b->memory.begin()));
  EXPECT_EQ(a->wait().wr_id, 2U) << "the write asked for no completion";
}

TEST_F(IbvPair, RefusesMoreInlineThanItSaid) {
  connect();
  const std::array<Segment, 1> data{a->segment(0, a->queue_pair->inline_bytes_max() + 1)};
  const SendRequest request{.segments = data, .rkey = b->region->rkey(), .inline_data = true};
  EXPECT_EQ(a->queue_pair->post_send({&request, 1}).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(IbvPair, SaysThatTheSendQueueIsFull) {
  // The other end stays unconnected and so answers nothing: no place becomes free while we post.
  ASSERT_TRUE(a->connect(*b).ok());
  const std::array<Segment, 1> data{a->segment(0, 8)};
  const SendRequest request{.segments = data,
                            .remote_address = b->address(0),
                            .rkey = b->region->rkey(),
                            .signaled = true};
  const std::vector<SendRequest> chain(32, request);
  EXPECT_EQ(a->queue_pair->post_send(std::vector<SendRequest>(65, request)).error().code,
            ErrorCode::kInvalidArgument);
  int n = 0;  // Devices round depths up, so there may be room for more than was asked for.
  Result<void> posted = a->queue_pair->post_send(chain);
  for (; posted.ok() && n < 4096; ++n) posted = a->queue_pair->post_send({&request, 1});
  ASSERT_FALSE(posted.ok());
  EXPECT_EQ(posted.error().code, ErrorCode::kResourceExhausted) << posted.error().message;
  EXPECT_GE(n, 32);
}

TEST_F(IbvPair, FlushesWhatIsOutstandingWhenSetToError) {
  connect();
  b->receive(1);
  b->receive(2);
  ASSERT_TRUE(b->queue_pair->set_error().ok());
  ASSERT_TRUE(b->queue_pair->set_error().ok());
  for (const std::uint64_t wr_id : {1U, 2U}) {
    const Completion flushed = b->wait();
    EXPECT_EQ(flushed.status, Status::kFlushed);
    EXPECT_EQ(flushed.wr_id, wr_id);
  }
  // Whoever writes to it now gets no answer.
  const std::array<Segment, 1> data{a->segment(0, 64)};
  const SendRequest request{.wr_id = 5,
                            .segments = data,
                            .remote_address = b->address(0),
                            .rkey = b->region->rkey(),
                            .signaled = true};
  ASSERT_TRUE(a->queue_pair->post_send({&request, 1}).ok());
  const Completion failed = a->wait();
  EXPECT_NE(failed.status, Status::kSuccess);
  EXPECT_EQ(failed.wr_id, 5U);
  EXPECT_EQ(b->memory[0], std::byte{0});
}

TEST_F(IbvPair, RefusesAWriteOutsideOfTheRegion) {
  connect();
  const std::array<Segment, 1> data{a->segment(0, 64)};
  const SendRequest request{.wr_id = 5,
                            .segments = data,
                            .remote_address = b->address(b->memory.size() - 32),
                            .rkey = b->region->rkey(),
                            .signaled = true};
  ASSERT_TRUE(a->queue_pair->post_send({&request, 1}).ok());
  EXPECT_EQ(a->wait().status, Status::kRemoteAccess);
  EXPECT_EQ(b->memory[b->memory.size() - 32], std::byte{0});
}

TEST_F(IbvPair, RefusesAKeyOfAnotherDomain) {
  connect();
  const TestEnd stranger(b->port);
  const std::array<Segment, 1> data{a->segment(0, 64)};
  const SendRequest request{.segments = data,
                            .remote_address = stranger.address(0),
                            .rkey = stranger.region->rkey(),
                            .signaled = true};
  ASSERT_TRUE(a->queue_pair->post_send({&request, 1}).ok());
  EXPECT_NE(a->wait().status, Status::kSuccess);
  EXPECT_EQ(stranger.memory[0], std::byte{0});
}

TEST_F(IbvPair, MayBeDestroyedWhileACallbackIsArmed) {
  connect();
  bool called = false;
  a->queue->arm(a->loop.get_executor(), [&] { called = true; });
  a->queue->arm(other.get_executor(), [&] { called = true; });  // To another loop.
  a->device->arm_events(other.get_executor(), [&] { called = true; });
  asio::io_context& loop = a->loop;
  a->queue_pair.reset();
  a->queue.reset();
  a->region.reset();
  a->domain.reset();
  a->device.reset();
  loop.run_for(std::chrono::seconds(1));  // Ends at once: nothing is pending any more.
  other.run_for(std::chrono::seconds(1));
  EXPECT_FALSE(called);
}

TEST_F(IbvPair, WakesTheLoopOfTheLastArm) {
  connect();
  b->receive(1);
  bool in_first = false;
  bool in_second = false;
  b->queue->arm(b->loop.get_executor(), [&] { in_first = true; });
  b->queue->arm(other.get_executor(), [&] { in_second = true; });
  const std::array<Segment, 1> data{a->segment(0, 64)};
  const SendRequest request{.operation = Operation::kWriteImmediate,
                            .segments = data,
                            .remote_address = b->address(0),
                            .rkey = b->region->rkey()};
  ASSERT_TRUE(a->queue_pair->post_send({&request, 1}).ok());
  other.run_one_for(kTestLimit);
  b->loop.run_for(std::chrono::seconds(1));
  EXPECT_TRUE(in_second);
  EXPECT_FALSE(in_first);
  EXPECT_EQ(b->wait().kind, CompletionKind::kReceiveImmediate);
}

// What a process of an ordinary user meets: the limit counts for everybody but root.
TEST(IbvDomain, SaysHowToRaiseTheLimitOfLockedMemory) {
  SKIP_WITHOUT_DEVICE();
  if (getuid() != 0) GTEST_SKIP() << "skipped: must be root to become another user";
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto say = [&](const std::string& text) {
      const bool said = write(ends[1], text.data(), text.size()) > 0;
      _exit(said ? 0 : 3);
    };
    constexpr std::size_t kMiB = std::size_t{1} << 20;
    const rlimit limit{.rlim_cur = 8 * kMiB, .rlim_max = 8 * kMiB};
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
      say("cannot become nobody");
    const auto device = make_ibv_provider()->open(test_ports()[0].device.name);
    if (!device.ok()) say(device.error().message);
    const auto domain = (*device)->create_domain();
    if (!domain.ok()) say(domain.error().message);
    std::vector<std::byte> small(4 * kMiB);
    std::vector<std::byte> large(16 * kMiB);
    const auto fits = (*domain)->register_memory(small, Access::kRemoteWrite);
    if (!fits.ok()) say("4 MiB: " + fits.error().message);
    const auto refused = (*domain)->register_memory(large, Access::kRemoteWrite);
    if (refused.ok()) say("16 MiB were accepted");
    if (refused.error().code != ErrorCode::kResourceExhausted) say("another code");
    say(refused.error().message);
  }
  close(ends[1]);
  std::string said(4096, '\0');
  const ssize_t n = read(ends[0], said.data(), said.size());
  said.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  close(ends[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(said,
            test_ports()[0].device.name +
                ": cannot lock 16 MiB of memory for RDMA: this process may lock 8 MiB in all. "
                "Raise the limit with `ulimit -l unlimited` in the shell, "
                "LimitMEMLOCK=infinity in a systemd unit, or `--ulimit memlock=-1` for a "
                "container");
}

/// Waits for an event of that kind, past others.
bool sees_event(Device& device, asio::io_context& loop, EventKind kind) {
  const auto deadline = std::chrono::steady_clock::now() + kTestLimit;
  while (std::chrono::steady_clock::now() < deadline) {
    while (const auto event = device.poll_event()) {
      EXPECT_FALSE(event->text.empty());
      if (event->kind == kind) return true;
    }
    device.arm_events(loop.get_executor(), [] {});
    loop.restart();
    loop.run_one_for(std::chrono::milliseconds(200));
  }
  return false;
}

// Takes a link down, so only where the lab's own interface names say that this is harmless.
TEST(IbvDevice, ReportsLinkAndAddressChanges) {
  SKIP_WITHOUT_DEVICE();
  const TestPort found = test_ports()[0];
  const std::string& interface = found.gid.interface;
  const auto is_lab = [&](const char* variable) {
    const char* const name = std::getenv(variable);
    return name != nullptr && interface == name;
  };
  if (!is_lab("RDMA_LAB_NETDEV_A") && !is_lab("RDMA_LAB_NETDEV_B"))
    GTEST_SKIP() << "skipped: not in the lab";
  const std::string link = "ip link set " + interface;
  asio::io_context loop{1};
  auto device = make_ibv_provider()->open(found.device.name);
  ASSERT_TRUE(device.ok()) << device.error().message;
  EXPECT_FALSE((*device)->poll_event().has_value());

  ASSERT_EQ(std::system((link + " down").c_str()), 0);
  EXPECT_TRUE(sees_event(**device, loop, EventKind::kPortError));
  EXPECT_EQ((*device)->query_port(found.port.number)->state, PortState::kDown);
  ASSERT_EQ(std::system((link + " up").c_str()), 0);
  // Going down took the global IPv6 addresses away; put them back for whoever comes next.
  for (const GidEntry& entry : found.port.gids) {
    if (is_mapped_ipv4(entry.gid) || entry.gid[0] == std::byte{0xfe}) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    inet_ntop(AF_INET6, entry.gid.data(), text.data(), text.size());
    const std::string again = std::string("ip -6 addr replace ") + text.data() + "/" +
                              std::to_string(entry.prefix_length) + " nodad dev " + interface;
    EXPECT_EQ(std::system(again.c_str()), 0);
  }
  EXPECT_TRUE(sees_event(**device, loop, EventKind::kPortActive));
  EXPECT_EQ((*device)->query_port(found.port.number)->state, PortState::kActive);

  const std::string address = " 10.9.77.1/24 dev " + interface;
  ASSERT_EQ(std::system(("ip addr add" + address).c_str()), 0);
  EXPECT_TRUE(sees_event(**device, loop, EventKind::kGidChange));
  ASSERT_EQ(std::system(("ip addr del" + address).c_str()), 0);
  EXPECT_TRUE(sees_event(**device, loop, EventKind::kGidChange));
}

}  // namespace
}  // namespace recua::net::verbs
