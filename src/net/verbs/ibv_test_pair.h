#pragma once
/// Two ends of a connection on real devices, for tests. With two devices each end has its own, with
/// one both share it, with none the tests are skipped.

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>

#include "net/verbs/ibv_provider.h"
#include "net/verbs/verbs.h"

namespace recua::net::verbs {

inline constexpr auto kTestLimit = std::chrono::seconds(20);
inline constexpr std::size_t kTestBufferBytes = std::size_t{64} << 10;

struct TestPort {
  DeviceInfo device;
  PortInfo port;
  GidEntry gid;
};

inline bool is_mapped_ipv4(const Gid& gid) {
  constexpr std::array<unsigned char, 12> kPrefix{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::memcmp(gid.data(), kPrefix.data(), kPrefix.size()) == 0;
}
inline std::string ipv4_of(const Gid& gid) {
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, gid.data() + 12, text.data(), text.size());
  return text.data();
}

/// Active ports with an IPv4 RoCEv2 address, one of each device.
inline std::vector<TestPort> test_ports() {
  std::vector<TestPort> out;
  const auto devices = make_ibv_provider()->devices();
  if (!devices.ok()) return out;
  for (const DeviceInfo& device : *devices) {
    for (const PortInfo& port : device.ports) {
      if (port.state != PortState::kActive) continue;
      for (const GidEntry& gid : port.gids) {
        if (gid.type != GidType::kRoceV2 || !is_mapped_ipv4(gid.gid)) continue;
        out.push_back({device, port, gid});
        break;
      }
      if (!out.empty() && out.back().device.name == device.name) break;
    }
  }
  if (out.size() == 1) out.push_back(out.front());
  return out;
}

#define SKIP_WITHOUT_DEVICE() \
  if (test_ports().empty()) GTEST_SKIP() << "skipped: no RDMA device here"

/// One end. Members die from the bottom up.
struct TestEnd {
  explicit TestEnd(const TestPort& p, const QueuePairOptions& wished = {})
      : port(p), options(wished), memory(kTestBufferBytes) {
    options.port = p.port.number;
    auto opened = make_ibv_provider()->open(p.device.name);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    device = std::move(*opened);
    domain = std::move(*device->create_domain());
    region = std::move(*domain->register_memory(memory, Access::kRemoteWrite));
    queue = std::move(*device->create_completion_queue(256));
    auto made = domain->create_queue_pair(*queue, options);
    EXPECT_TRUE(made.ok()) << made.error().message;
    queue_pair = std::move(*made);
  }

  Result<void> connect(const TestEnd& other) {
    AddressVector address{.port = port.port.number, .gid = other.port.gid.gid};
    address.gid_index = static_cast<std::uint8_t>(port.gid.index);
    return queue_pair->connect(
        {.address = address,
         .remote_qp_number = other.queue_pair->number(),
         .remote_psn = other.psn,
         .local_psn = psn,
         .mtu_bytes = std::min(port.port.mtu_bytes, other.port.port.mtu_bytes)});
  }
  void receive(std::uint64_t wr_id, Segment segment = {}) {
    const ReceiveRequest request{.wr_id = wr_id, .segment = segment};
    const auto posted = queue_pair->post_receive({&request, 1});
    EXPECT_TRUE(posted.ok()) << posted.error().message;
  }
  [[nodiscard]] Segment segment(std::size_t offset, std::uint32_t bytes) const {
    return {.data = memory.data() + offset, .bytes = bytes, .lkey = region->lkey()};
  }
  [[nodiscard]] std::uint64_t address(std::size_t offset) const {
    return std::bit_cast<std::uintptr_t>(memory.data() + offset);
  }
  /// The next completion, slept for and not spun for: Soft-RoCE needs the processor meanwhile.
  Completion wait() {
    const auto deadline = std::chrono::steady_clock::now() + kTestLimit;
    Completion out{.status = Status::kOther};
    bool woken = true;
    while (std::chrono::steady_clock::now() < deadline) {
      const auto n = queue->poll({&out, 1});
      EXPECT_TRUE(n.ok());
      if (*n == 1) return out;
      if (woken) {
        woken = false;
        queue->arm(loop.get_executor(), [&woken] { woken = true; });
        continue;
      }
      loop.restart();
      loop.run_one_for(std::chrono::milliseconds(200));
    }
    ADD_FAILURE() << "no completion within the limit";
    return out;
  }

  TestPort port;
  QueuePairOptions options;
  std::uint32_t psn = 0x123456;
  asio::io_context loop{1};
  std::vector<std::byte> memory;
  std::unique_ptr<Device> device;
  std::unique_ptr<Domain> domain;
  std::unique_ptr<Region> region;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> queue_pair;
};

}  // namespace recua::net::verbs
