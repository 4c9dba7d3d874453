#pragma once
/// What the tests of src/collective share: the ranks of a group, connected by links over real
/// loopback connections, each with a loop of its own.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "base/random.h"
#include "collective/channel_communicator.h"
#include "net/real_clock.h"
#include "net/shm/shared_memory.h"
#include "net/tcp/tcp_pair.h"
#include "net/verbs/fake_fabric.h"
#include "rpc/link.h"

namespace recua::collective {

namespace asio = boost::asio;

/// What links may use besides the one connection that two ranks share; or, as with an older one,
/// a connection for each.
enum class Links { kTcp, kTcpApart, kSharedMemory, kRdma };

inline std::string to_string(Links links) {
  switch (links) {
    case Links::kTcp:
      return "tcp";
    case Links::kTcpApart:
      return "tcp_apart";
    case Links::kSharedMemory:
      return "shm";
    case Links::kRdma:
      return "rdma";
  }
  return {};
}

struct TestGroupOptions {
  std::uint32_t n_ranks = 2;
  Links links = Links::kTcp;
  rpc::RingShape ring{.n_slots = 4, .slot_bytes = 4096};
  std::size_t caller_bytes = 0;
  CommunicatorOptions communicator = {.timeout = std::chrono::seconds(5)};
  /// Wraps the receiver at `to` for what comes from `from`.
  std::function<std::unique_ptr<rpc::ChannelReceiver>(
      std::uint32_t to, std::uint32_t from, std::unique_ptr<rpc::ChannelReceiver>, net::Env)>
      wrap = {};
};

class TestGroup {
 public:
  static constexpr rpc::ChannelId kId{.session = 9, .epoch = 2};

  struct Rank {
    asio::io_context loop{1};
    LoopWaiter waiter{loop};
    std::vector<net::shm::SharedMemory> rings;
    std::unique_ptr<ChannelCommunicator> communicator;  // Reset it and the rank is gone.
  };

  explicit TestGroup(TestGroupOptions options_in = {})
      : options(std::move(options_in)), network(setup.get_executor()) {
    // All in one process: one fake card, which reaches itself.
    fabric.add_device("here", "card", {"127.0.0.1"});
    provider = fabric.provider("here");
    policy.allow_rdma = options.links == Links::kRdma;
    policy.provider = provider.get();
    policy.allow_shared_memory = options.links == Links::kSharedMemory;
    policy.host_identity = "here";
    const std::uint32_t n = options.n_ranks;
    std::vector<std::vector<PeerChannels>> channels(n);
    std::vector<SendRing> send_rings;
    for (std::uint32_t r = 0; r < n; ++r) {
      ranks.push_back(std::make_unique<Rank>());
      channels[r].resize(n);
      send_rings.push_back(*SendRing::create(options.ring, n, options.caller_bytes));
    }
    // streams[a][b]: at rank a, of what goes to rank b.
    std::vector<std::vector<std::shared_ptr<rpc::LinkStream>>> streams(n);
    for (auto& of_rank : streams) of_rank.resize(n);
    const bool shares = options.links != Links::kTcpApart;
    for (std::uint32_t from = 0; from < n; ++from) {
      for (std::uint32_t to = 0; to < n; ++to) {
        if (from == to) continue;
        std::shared_ptr<rpc::LinkStream> at_receiver;
        if (shares && from > to) {
          at_receiver = streams[to][from];
        } else {
          auto [client, server] = net::connect_over_loopback(setup, network);
          streams[from][to] =
              rpc::make_link_stream(*client->move_to(ranks[from]->loop.get_executor()));
          at_receiver = rpc::make_link_stream(*server->move_to(ranks[to]->loop.get_executor()));
          if (shares) streams[to][from] = at_receiver;
        }
        channels[from][to].sender =
            rpc::make_link_sender(context(from), streams[from][to], options.ring,
                                  {send_rings[from].memory()}, std::vector<std::uint32_t>{1, 2, 3});
        Rank& receiver = *ranks[to];
        receiver.rings.push_back(
            *net::shm::SharedMemory::create(options.ring.n_slots * options.ring.slot_bytes));
        channels[to][from].receiver = *rpc::make_link_receiver(
            context(to), at_receiver, kId, options.ring,
            {.bytes = receiver.rings.back().bytes(), .shared_fd = receiver.rings.back().fd()});
        if (options.wrap) {
          channels[to][from].receiver =
              options.wrap(to, from, std::move(channels[to][from].receiver), env(to));
        }
      }
    }
    for (std::uint32_t r = 0; r < n; ++r) {
      ranks[r]->communicator = *ChannelCommunicator::create({.id = kId,
                                                             .rank = r,
                                                             .ring = std::move(send_rings[r]),
                                                             .channels = std::move(channels[r]),
                                                             .clock = &clock,
                                                             .waiter = &ranks[r]->waiter,
                                                             .options = options.communicator});
    }
  }

  /// Each rank's work on a thread of its own; returns when all have ended.
  void run(const std::function<void(ChannelCommunicator&)>& work) {
    std::vector<std::jthread> threads;
    for (const auto& rank : ranks) {
      if (rank->communicator == nullptr) continue;
      threads.emplace_back([&work, &rank] { work(*rank->communicator); });
    }
  }

  [[nodiscard]] net::Env env(std::uint32_t rank) {
    return {.executor = ranks[rank]->loop.get_executor(),
            .clock = &clock,
            .network = &network,
            .random = [] {
              static thread_local Rng rng(reinterpret_cast<std::uintptr_t>(&rng));
              return rng.next();
            }};
  }

  TestGroupOptions options;
  net::RealClock clock;
  asio::io_context setup{1};
  net::TcpNetwork network;
  net::verbs::FakeFabric fabric;
  std::unique_ptr<net::verbs::Provider> provider;
  rpc::LinkPolicy policy;
  std::vector<std::unique_ptr<Rank>> ranks;

 private:
  rpc::LinkContext context(std::uint32_t rank) {
    rpc::LinkContext out{.env = env(rank), .policy = &policy};
    const bool is_tcp = options.links == Links::kTcp || options.links == Links::kTcpApart;
    if (is_tcp) out.policy = nullptr;
    out.report = [](const std::string&) {};
    return out;
  }
};

/// What rank r contributes: numbers of such different sizes that the order of adding shows.
inline std::vector<float> test_values(std::uint64_t seed, std::uint32_t rank, std::size_t n) {
  Rng rng(mix(seed, rank));
  std::vector<float> out(n);
  for (float& value : out) {
    value = static_cast<float>(rng.normal() * (rng.below(4) == 0 ? 1e4 : 1.0));
  }
  return out;
}

/// The sum over ranks, added in their order.
inline std::vector<float> serial_sum(std::uint64_t seed, std::uint32_t n_ranks, std::size_t n) {
  std::vector<float> out = test_values(seed, 0, n);
  for (std::uint32_t r = 1; r < n_ranks; ++r) {
    const std::vector<float> more = test_values(seed, r, n);
    for (std::size_t i = 0; i < n; ++i) out[i] += more[i];
  }
  return out;
}

}  // namespace recua::collective
