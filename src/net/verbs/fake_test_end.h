#pragma once
/// Two ends on a FakeFabric with the objects that a card has, for tests of the fabric itself.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "net/verbs/fake_fabric.h"

namespace recua::net::verbs {

inline std::vector<Completion> take(CompletionQueue& queue) {
  std::vector<Completion> out(64);
  auto n = queue.poll(out);
  EXPECT_TRUE(n.ok()) << n.error().message;
  out.resize(n.ok() ? *n : 0);
  return out;
}

inline std::vector<std::pair<std::uint64_t, Status>> take_statuses(CompletionQueue& queue) {
  std::vector<std::pair<std::uint64_t, Status>> out;
  for (const Completion& completion : take(queue))
    out.emplace_back(completion.wr_id, completion.status);
  return out;
}
using Statuses = std::vector<std::pair<std::uint64_t, Status>>;

inline std::vector<EventKind> take_events(Device& device) {
  std::vector<EventKind> out;
  while (const auto event = device.poll_event()) out.push_back(event->kind);
  return out;
}
using Events = std::vector<EventKind>;

/// One end of a connection, with objects as a card has them.
struct End {
  End(FakeFabric& fabric, const std::string& host, const std::string& name,
      const QueuePairOptions& options = {})
      : provider(fabric.provider(host)), memory(4096) {
    device = std::move(*provider->open(name));
    domain = std::move(*device->create_domain());
    window = std::move(*domain->register_memory(memory, Access::kRemoteWrite));
    queue = std::move(*device->create_completion_queue(64));
    pair = std::move(*domain->create_queue_pair(*queue, options));
  }

  /// What a peer needs to reach this end.
  [[nodiscard]] ConnectParameters reach() const {
    ConnectParameters out;
    out.address = {.port = 1, .gid = device->info().ports[0].gids[1].gid, .gid_index = 1};
    out.remote_qp_number = pair->number();
    out.remote_psn = psn;
    out.mtu_bytes = 4096;
    return out;
  }
  [[nodiscard]] std::uint64_t address() const {
    return reinterpret_cast<std::uint64_t>(memory.data());
  }
  Result<void> connect(const End& peer) {
    ConnectParameters parameters = peer.reach();
    parameters.local_psn = psn;
    return pair->connect(parameters);
  }
  Result<void> write(const End& peer, std::uint64_t wr_id, bool signaled = true,
                     Operation operation = Operation::kWrite) {
    return write_to(wr_id, peer.address(), peer.window->rkey(), 8, signaled, operation);
  }
  Result<void> write_to(std::uint64_t wr_id, std::uint64_t address, std::uint32_t rkey,
                        std::uint32_t bytes, bool signaled = true,
                        Operation operation = Operation::kWrite) {
    const Segment segment{.data = memory.data() + 2048, .bytes = bytes, .lkey = window->lkey()};
    const SendRequest request{.wr_id = wr_id,
                              .operation = operation,
                              .segments = {&segment, 1},
                              .remote_address = address,
                              .rkey = rkey,
                              .immediate = 77,
                              .signaled = signaled};
    return pair->post_send({&request, 1});
  }
  Result<void> receive(std::uint64_t wr_id, std::uint32_t bytes = 8) {
    const ReceiveRequest request{
        .wr_id = wr_id,
        .segment = {.data = memory.data() + 1024, .bytes = bytes, .lkey = window->lkey()}};
    return pair->post_receive({&request, 1});
  }

  std::unique_ptr<Provider> provider;
  std::unique_ptr<Device> device;
  std::unique_ptr<Domain> domain;
  std::vector<std::byte> memory;
  std::unique_ptr<Region> window;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> pair;
  std::uint32_t psn = 0x123456;
};

class FakeFabricTest : public ::testing::Test {
 protected:
  FakeFabricTest() {
    fabric_.add_device("a", "fa", {"10.0.0.1", "fd00::1"});
    fabric_.add_device("b", "fb", {"10.0.0.2"});
  }
  void connect(const QueuePairOptions& options = {}) {
    a_ = std::make_unique<End>(fabric_, "a", "fa", options);
    b_ = std::make_unique<End>(fabric_, "b", "fb", options);
    b_->psn = 0x654321;
    ASSERT_TRUE(a_->connect(*b_).ok());
    ASSERT_TRUE(b_->connect(*a_).ok());
    std::fill(a_->memory.begin(), a_->memory.end(), std::byte{0xaa});
  }
  /// Whether b got what a wrote.
  [[nodiscard]] bool arrived() const { return b_->memory[0] == std::byte{0xaa}; }

  FakeFabric fabric_;
  std::unique_ptr<End> a_;
  std::unique_ptr<End> b_;
};

}  // namespace recua::net::verbs
