#include "net/verbs/cm.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include "net/verbs/ibv_test_pair.h"

namespace recua::net::verbs {
namespace {

constexpr Duration kResolve = std::chrono::seconds(5);
constexpr CmToken kToken{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{255}};

TEST(Cm, SaysWhyItCannotBeUsedHere) {
  if (!test_ports().empty()) GTEST_SKIP() << "skipped: there is an RDMA device";
  const auto listener = cm_listen("127.0.0.1");
  ASSERT_FALSE(listener.ok());
  EXPECT_EQ(listener.error().code, ErrorCode::kUnsupported) << listener.error().message;
  const auto connection = cm_connect("127.0.0.1", {.host = "127.0.0.1", .port = 1}, kResolve);
  ASSERT_FALSE(connection.ok());
  EXPECT_EQ(connection.error().code, ErrorCode::kUnsupported) << connection.error().message;
}

/// Both ends on one loop, each on its device.
class CmPair : public testing::Test {
 protected:
  void SetUp() override {
    const std::vector<TestPort> ports = test_ports();
    if (ports.empty()) GTEST_SKIP() << "skipped: no RDMA device here";
    a = std::make_unique<TestEnd>(ports[0]);
    b = std::make_unique<TestEnd>(ports[1]);
    auto made = cm_listen(ipv4_of(ports[1].gid.gid));
    ASSERT_TRUE(made.ok()) << made.error().message;
    listener = std::move(*made);
  }

  /// Runs until done() holds; it is asked again whenever one of the three woke up.
  [[nodiscard]] bool run_until(const std::function<bool()>& done) {
    const auto deadline = std::chrono::steady_clock::now() + kTestLimit;
    while (!done()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      if (listener) listener->arm(loop.get_executor(), [] {});
      if (active) active->arm(loop.get_executor(), [] {});
      if (passive) passive->arm(loop.get_executor(), [] {});
      loop.restart();
      loop.run_one_for(std::chrono::milliseconds(200));
    }
    return true;
  }
  void start(const Endpoint& remote) {
    if (local_address.empty()) local_address = ipv4_of(a->port.gid.gid);
    auto made = cm_connect(local_address, remote, kResolve);
    ASSERT_TRUE(made.ok()) << made.error().message;
    active = std::move(*made);
    ASSERT_TRUE(run_until([&] { return active->poll() != CmState::kResolving; }));
    ASSERT_EQ(active->poll(), CmState::kResolved) << active->failure()->message;
  }
  void connect() {
    start(listener->endpoint());
    EXPECT_EQ(active->device(), a->port.device.name);
    EXPECT_EQ(active->device_port(), a->port.port.number);
    const auto asked = active->connect(*a->queue_pair, kToken, {});
    ASSERT_TRUE(asked.ok()) << asked.error().message;
    std::optional<CmRequest> request;
    ASSERT_TRUE(run_until([&] {
      auto polled = listener->poll();
      EXPECT_TRUE(polled.ok()) << polled.error().message;
      request = std::move(*polled);
      return request.has_value();
    }));
    EXPECT_EQ(request->token, kToken);
    passive = std::move(request->connection);
    EXPECT_EQ(passive->device(), b->port.device.name);
    const auto accepted = passive->accept(*b->queue_pair, {});
    ASSERT_TRUE(accepted.ok()) << accepted.error().message;
    ASSERT_TRUE(run_until([&] {
      const CmState there = active->poll();
      const CmState here = passive->poll();
      return there != CmState::kConnecting && here != CmState::kConnecting;
    }));
    ASSERT_EQ(active->poll(), CmState::kConnected) << active->failure()->message;
    ASSERT_EQ(passive->poll(), CmState::kConnected) << passive->failure()->message;
  }

  asio::io_context loop{1};
  std::string local_address;  // Empty: a's IPv4 address.
  std::unique_ptr<TestEnd> a;
  std::unique_ptr<TestEnd> b;
  std::unique_ptr<CmListener> listener;
  std::unique_ptr<CmConnection> active;
  std::unique_ptr<CmConnection> passive;
};

TEST_F(CmPair, ListensOnTheDeviceOfItsAddress) {
  EXPECT_EQ(listener->device(), b->port.device.name);
  EXPECT_EQ(listener->device_port(), b->port.port.number);
  EXPECT_NE(listener->endpoint().port, 0);
}

TEST_F(CmPair, ConnectsQueuePairsThatWriteToEachOther) {
  b->receive(3);
  connect();
  for (std::size_t i = 0; i < 4096; ++i) a->memory[i] = static_cast<std::byte>(i + 1);
  const std::array<Segment, 1> data{a->segment(0, 4096)};
  const SendRequest request{.operation = Operation::kWriteImmediate,
                            .segments = data,
                            .remote_address = b->address(8192),
                            .rkey = b->region->rkey(),
                            .immediate = 99,
                            .signaled = true};
  ASSERT_TRUE(a->queue_pair->post_send({&request, 1}).ok());
  const Completion arrival = b->wait();
  EXPECT_EQ(arrival.status, Status::kSuccess) << to_string(arrival.status);
  EXPECT_EQ(arrival.immediate, 99U);
  EXPECT_TRUE(std::equal(a->memory.begin(), a->memory.begin() + 4096, b->memory.begin() + 8192));
  EXPECT_EQ(a->wait().status, Status::kSuccess);

  // And back, which shows that the active end became ready to receive, too.
  a->receive(4);
  const std::array<Segment, 1> answer{b->segment(8192, 64)};
  const SendRequest back{.operation = Operation::kWriteImmediate,
                         .segments = answer,
                         .remote_address = a->address(32768),
                         .rkey = a->region->rkey()};
  ASSERT_TRUE(b->queue_pair->post_send({&back, 1}).ok());
  EXPECT_EQ(a->wait().kind, CompletionKind::kReceiveImmediate);
}

TEST_F(CmPair, ConnectsOverIpv6) {
  // Both addresses on one device: where two devices of one host stand for two hosts, the kernel
  // routes IPv6 within the host and rdma_cm never gets an answer.
  if (a->port.device.name != b->port.device.name) GTEST_SKIP() << "skipped: two devices here";
  for (const GidEntry& entry : a->port.port.gids) {
    const bool global = !is_mapped_ipv4(entry.gid) && entry.gid[0] != std::byte{0xfe};
    if (entry.type != GidType::kRoceV2 || !global) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    inet_ntop(AF_INET6, entry.gid.data(), text.data(), text.size());
    local_address = text.data();
  }
  if (local_address.empty()) GTEST_SKIP() << "skipped: no IPv6 address here";
  auto made = cm_listen(local_address);
  ASSERT_TRUE(made.ok()) << made.error().message;
  listener = std::move(*made);
  connect();
}

TEST_F(CmPair, TellsTheOtherEndThatOneIsGone) {
  connect();
  active.reset();
  ASSERT_TRUE(run_until([&] { return passive->poll() == CmState::kEnded; }));
  EXPECT_EQ(passive->failure()->code, ErrorCode::kUnavailable);
  EXPECT_NE(passive->failure()->message.find("disconnected"), std::string::npos)
      << passive->failure()->message;
}

TEST_F(CmPair, FailsWhereNobodyListens) {
  const Endpoint gone = listener->endpoint();
  listener.reset();
  start(gone);
  ASSERT_TRUE(active->connect(*a->queue_pair, kToken, {}).ok());
  ASSERT_TRUE(run_until([&] { return active->poll() == CmState::kEnded; }));
  EXPECT_EQ(active->failure()->code, ErrorCode::kUnavailable);
  EXPECT_NE(active->failure()->message.find("nobody listens"), std::string::npos)
      << active->failure()->message;
}

TEST_F(CmPair, IsRejectedByDestroyingTheRequest) {
  start(listener->endpoint());
  ASSERT_TRUE(active->connect(*a->queue_pair, kToken, {}).ok());
  ASSERT_TRUE(run_until([&] {
    auto polled = listener->poll();
    EXPECT_TRUE(polled.ok()) << polled.error().message;
    return polled->has_value();  // And drops it.
  }));
  ASSERT_TRUE(run_until([&] { return active->poll() == CmState::kEnded; }));
  EXPECT_EQ(active->failure()->code, ErrorCode::kUnavailable) << active->failure()->message;
}

TEST_F(CmPair, WantsAQueuePairOfTheRightDevice) {
  start(listener->endpoint());
  if (a->port.device.name == b->port.device.name) GTEST_SKIP() << "skipped: only one device here";
  EXPECT_EQ(active->connect(*b->queue_pair, kToken, {}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(active->connect(*a->queue_pair, kToken, {.mtu_bytes = 1500}).error().code,
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(active->accept(*a->queue_pair, {}).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(CmPair, ListensOnlyOnAddressesOfDevices) {
  const auto other = cm_listen("127.0.0.1");
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, ErrorCode::kNotFound) << other.error().message;
  EXPECT_EQ(cm_listen("not an address").error().code, ErrorCode::kInvalidArgument);
}

TEST_F(CmPair, ConnectsManyTimesWithoutLeavingDescriptors) {
  const auto open_now = [] {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      const std::string what = std::filesystem::read_symlink(entry.path(), error).string();
      // Of eventfds, sockets and such the number differs each time.
      if (!what.starts_with("/proc")) out.push_back(what.substr(0, what.find('[')));
    }
    std::sort(out.begin(), out.end());
    return out;
  };
  listener->arm(loop.get_executor(), [] {});  // The loop opens its own at the first wait.
  connect();  // librdmacm opens the devices at the first use and keeps them.
  active.reset();
  passive.reset();
  const std::vector<std::string> before = open_now();
  for (int i = 0; i < 10; ++i) {
    a = std::make_unique<TestEnd>(a->port);
    b = std::make_unique<TestEnd>(b->port);
    connect();
    if (HasFatalFailure()) return;
    active.reset();
    passive.reset();
  }
  EXPECT_EQ(open_now(), before);
}

}  // namespace
}  // namespace recua::net::verbs
