// What a lane costs in instructions: N messages of 8 KiB (header and rows, two segments) over fake
// cards, each written, announced, taken and completed, by a lane or by the least that verbs allow:
// one post, one poll on either side, one receive posted again, from requests that were prepared
// before. To be counted under callgrind, which scripts/bench-instructions does.
//
//   lane_instructions lane|bare N
//
// The fake's own instructions are in both, as a driver's would be.
#include <array>
#include <charconv>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "net/verbs/fake_fabric.h"
#include "net/verbs/lane.h"

namespace recua::net::verbs {
namespace {

constexpr std::size_t kHeaderBytes = 64;
constexpr std::size_t kMessageBytes = 8192;
constexpr std::uint32_t kReceives = 16;

struct Fabric {
  Fabric() {
    fabric.add_device("a", "fa", {"10.0.0.1"});
    fabric.add_device("b", "fb", {"10.0.0.2"});
  }
  /// The port of either host.
  PortChoice port(const std::string& host) {
    return choose_ports(*fabric.provider(host)->devices(), {}, "").value().front();
  }
  FakeFabric fabric;
};

void run_lanes(Fabric& fabric, std::uint64_t n) {
  std::vector<std::byte> source(kHeaderBytes + kMessageBytes);
  std::vector<std::byte> window(kMessageBytes);
  std::vector<std::byte> other_window(64);
  const auto providers = std::array{fabric.fabric.provider("a"), fabric.fabric.provider("b")};
  const std::array<std::span<std::byte>, 1> sources = {source};
  const LaneOptions options{.receive_depth = kReceives};
  const auto a =
      Lane::create(*providers[0], fabric.port("a"), other_window, sources, 1, options).value();
  const auto b = Lane::create(*providers[1], fabric.port("b"), window, {}, 2, options).value();
  RECUA_CHECK(a->connect(b->local()).ok() && b->connect(a->local()).ok());

  const std::span<const std::byte> bytes(source);
  const std::array<std::span<const std::byte>, 2> parts = {
      bytes.first(kHeaderBytes), bytes.subspan(kHeaderBytes, kMessageBytes - kHeaderBytes)};
  std::vector<Announcement> announcements;
  announcements.reserve(kReceives);
  for (std::uint64_t i = 0; i < n; ++i) {
    const auto written = a->write(
        {.offset = 0, .parts = parts, .announce = static_cast<std::uint32_t>(i), .signal = false});
    RECUA_CHECK(written.ok() && *written);
    announcements.clear();
    b->poll(announcements);
    RECUA_CHECK(announcements.size() == 1 &&
                announcements.front().value == static_cast<std::uint32_t>(i));
    announcements.clear();
    a->poll(announcements);
    RECUA_CHECK(a->n_completed() == i + 1);
  }
}

/// One end without a lane.
struct Bare {
  Bare(Fabric& fabric, const std::string& host, std::span<std::byte> memory)
      : provider(fabric.fabric.provider(host)), port(fabric.port(host)) {
    device = provider->open(port.device).value();
    domain = device->create_domain().value();
    region = domain->register_memory(memory, Access::kRemoteWrite).value();
    queue = device->create_completion_queue(128).value();
    pair = domain->create_queue_pair(*queue, {.receive_depth = kReceives}).value();
    for (std::uint64_t i = 0; i < kReceives; ++i) {
      const ReceiveRequest receive{.wr_id = i, .segment = {}};
      RECUA_CHECK(pair->post_receive({&receive, 1}).ok());
    }
  }
  void connect(const Bare& peer) {
    RECUA_CHECK(pair->connect({.address = make_address(port, port_address(peer.port)),
                               .remote_qp_number = peer.pair->number(),
                               .mtu_bytes = 4096})
                    .ok());
  }

  std::unique_ptr<Provider> provider;
  PortChoice port;
  std::unique_ptr<Device> device;
  std::unique_ptr<Domain> domain;
  std::unique_ptr<Region> region;
  std::unique_ptr<CompletionQueue> queue;
  std::unique_ptr<QueuePair> pair;
  std::array<Completion, 16> batch;
};

void run_bare(Fabric& fabric, std::uint64_t n) {
  std::vector<std::byte> source(kHeaderBytes + kMessageBytes);
  std::vector<std::byte> window(kMessageBytes);
  Bare a(fabric, "a", source);
  Bare b(fabric, "b", window);
  a.connect(b);
  b.connect(a);
  const std::array<Segment, 2> segments = {
      Segment{.data = source.data(), .bytes = kHeaderBytes, .lkey = a.region->lkey()},
      Segment{.data = source.data() + kHeaderBytes,
              .bytes = kMessageBytes - kHeaderBytes,
              .lkey = a.region->lkey()}};
  SendRequest request{.operation = Operation::kWriteImmediate,
                      .segments = segments,
                      .remote_address = reinterpret_cast<std::uint64_t>(window.data()),
                      .rkey = b.region->rkey(),
                      .signaled = true};
  for (std::uint64_t i = 0; i < n; ++i) {
    request.wr_id = i;
    request.immediate = static_cast<std::uint32_t>(i);
    RECUA_CHECK(a.pair->post_send({&request, 1}).ok());
    RECUA_CHECK(b.queue->poll(b.batch).value() == 1);
    RECUA_CHECK(b.batch[0].status == Status::kSuccess && b.batch[0].immediate == request.immediate);
    const ReceiveRequest receive{.wr_id = b.batch[0].wr_id, .segment = {}};
    RECUA_CHECK(b.pair->post_receive({&receive, 1}).ok());
    RECUA_CHECK(a.queue->poll(a.batch).value() == 1);
    RECUA_CHECK(a.batch[0].status == Status::kSuccess && a.batch[0].wr_id == i);
  }
}

int run(std::string_view mode, std::string_view count) {
  std::uint64_t n = 0;
  const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), n);
  if (error != std::errc() || end != count.data() + count.size()) return 2;
  Fabric fabric;
  if (mode == "lane") {
    run_lanes(fabric, n);
  } else if (mode == "bare") {
    run_bare(fabric, n);
  } else {
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace recua::net::verbs

int main(int argc, char** argv) {
  const int code = argc == 3 ? recua::net::verbs::run(argv[1], argv[2]) : 2;
  if (code == 2) fmt::print(stderr, "usage: lane_instructions lane|bare N\n");
  return code;
}
