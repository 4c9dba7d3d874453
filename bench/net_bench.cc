// Ping-pong of tensor messages over TCP on loopback between two threads that spin, as two workers
// would on two machines. In turns with it the same bytes by plain send and polled recv, as the
// yardstick of the same run: on one connection, whose answers carry the acknowledgements, and on
// two with one direction each, as channels have them, where those are packets of their own.
//
//   net_bench [rounds per turn]
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <string_view>
#include <sys/socket.h>
#include <thread>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <fmt/format.h>

#include "median.h"
#include "net/tcp/tcp_pair.h"
#include "rpc/handshake.h"
#include "rpc/tcp_channel.h"

namespace recua {
namespace {

using Nanoseconds = std::chrono::nanoseconds;
using SteadyClock = std::chrono::steady_clock;
using ConnectionPtr = std::unique_ptr<net::Connection>;

constexpr rpc::ChannelId kId{.session = 1, .epoch = 1};
constexpr std::uint64_t kSlotBytesMin = 4096;                    // No model's slots are smaller.
constexpr std::uint64_t kRingBytes = std::uint64_t{512} << 10U;  // Stays in a cache.

/// One end: sends on one connection, receives on another.
struct End {
  End(ConnectionPtr out, ConnectionPtr in, std::uint64_t slot_bytes)
      : ring{.n_slots = static_cast<std::uint32_t>(
                 std::clamp<std::uint64_t>(kRingBytes / slot_bytes, 8, 64)),
             .slot_bytes = std::max(slot_bytes, kSlotBytesMin)},
        memory(ring.n_slots * ring.slot_bytes) {
    sender = rpc::make_tcp_sender(*out->move_to(io.get_executor()), ring, rpc::PeerInfo{}.features);
    receiver = *rpc::make_tcp_receiver(*in->move_to(io.get_executor()), kId, ring, memory);
  }
  void send(std::span<const std::byte> rows) {
    rpc::TensorHeader header{.session = kId.session, .epoch = kId.epoch};
    header.n_rows = 1;
    header.row_bytes = static_cast<std::uint32_t>(rows.size());
    while (!*sender->try_send({header, rows, {}})) RECUA_CHECK(sender->poll().ok());
  }
  void receive() {
    while (true) {
      auto in = receiver->poll();
      RECUA_CHECK(in.ok());
      if (!*in) continue;
      RECUA_CHECK(receiver->release((*in)->slot).ok());
      return;
    }
  }
  net::asio::io_context io{1};
  rpc::RingShape ring;
  std::vector<std::byte> memory;
  std::unique_ptr<rpc::ChannelSender> sender;
  std::unique_ptr<rpc::ChannelReceiver> receiver;
};

/// Half of the median round trip: one way, in microseconds.
double one_way(std::vector<Nanoseconds>& times) {
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2].count()) / 2000.0;
}

double channel_ping_pong(std::size_t bytes, int n_rounds) {
  net::asio::io_context io{1};
  net::TcpNetwork network(io.get_executor());
  net::TcpPair there = net::connect_over_loopback(io, network);  // a sends on there, b on back.
  net::TcpPair back = net::connect_over_loopback(io, network);
  const std::uint64_t slot_bytes = bytes + rpc::kTensorHeaderBytes;
  End a(std::move(there.client), std::move(back.server), slot_bytes);
  End b(std::move(back.client), std::move(there.server), slot_bytes);
  const std::vector<std::byte> rows(bytes, std::byte{1});

  std::jthread echo([&] {
    for (int i = 0; i < n_rounds; ++i) {
      b.receive();
      b.send(rows);
    }
  });
  std::vector<Nanoseconds> times;
  for (int i = 0; i < n_rounds; ++i) {
    const auto start = SteadyClock::now();
    a.send(rows);
    a.receive();
    times.push_back(SteadyClock::now() - start);
  }
  const auto& sent = a.sender->counters();
  const auto& received = a.receiver->counters();
  RECUA_CHECK(sent.payload_copies == 0 && received.payload_copies == 0);
  return one_way(times);
}

double plain_ping_pong(std::size_t bytes, int n_rounds, std::size_t n_connections) {
  net::asio::io_context io{1};
  using tcp = net::asio::ip::tcp;
  tcp::acceptor acceptor(io, tcp::endpoint(tcp::v4(), 0));
  const auto port = acceptor.local_endpoint().port();
  std::vector<tcp::socket> a;
  std::vector<tcp::socket> b;
  for (std::size_t i = 0; i < n_connections; ++i) {
    a.emplace_back(io).connect(tcp::endpoint(net::asio::ip::address_v4::loopback(), port));
    b.push_back(acceptor.accept());
    a.back().set_option(tcp::no_delay(true));
    b.back().set_option(tcp::no_delay(true));
  }
  const std::size_t size = bytes + rpc::kTensorHeaderBytes;
  const auto send_all = [size](tcp::socket& socket, std::vector<char>& buffer) {
    const ssize_t n = ::send(socket.native_handle(), buffer.data(), size, MSG_NOSIGNAL);
    RECUA_CHECK(n == static_cast<ssize_t>(size));
  };
  const auto receive_all = [size](tcp::socket& socket, std::vector<char>& buffer) {
    for (std::size_t done = 0; done < size;) {
      const ssize_t n =
          ::recv(socket.native_handle(), buffer.data() + done, size - done, MSG_DONTWAIT);
      if (n > 0) done += static_cast<std::size_t>(n);
    }
  };
  std::jthread echo([&] {
    std::vector<char> buffer(size);
    for (int i = 0; i < n_rounds; ++i) {
      receive_all(b.front(), buffer);
      send_all(b.back(), buffer);
    }
  });
  std::vector<char> buffer(size);
  std::vector<Nanoseconds> times;
  for (int i = 0; i < n_rounds; ++i) {
    const auto start = SteadyClock::now();
    send_all(a.front(), buffer);
    receive_all(a.back(), buffer);
    times.push_back(SteadyClock::now() - start);
  }
  return one_way(times);
}

}  // namespace
}  // namespace recua

int main(int argc, char** argv) {
  int n_rounds = 1000;
  if (argc > 1) std::from_chars(argv[1], argv[1] + std::strlen(argv[1]), n_rounds);
  constexpr int kTurns = 21;
  fmt::print("one way, medians of {} turns of {} round trips each\n", kTurns, n_rounds);
  for (const std::size_t bytes : {64u, 1024u, 8192u, 65536u}) {
    std::vector<double> channel;
    std::vector<double> plain[2];
    std::vector<double> ratios[2];
    for (int turn = 0; turn < kTurns; ++turn) {
      channel.push_back(recua::channel_ping_pong(bytes, n_rounds));
      for (const std::size_t n : {1u, 2u}) {
        plain[n - 1].push_back(recua::plain_ping_pong(bytes, n_rounds, n));
        ratios[n - 1].push_back(channel.back() / plain[n - 1].back());
      }
    }
    fmt::print(
        "net/one_way/bytes:{:<6} tcp {:7.2f} us   one plain connection {:7.2f} us, ratio {:.2f}   "
        "two {:7.2f} us, ratio {:.2f}\n",
        bytes, recua::median(channel), recua::median(plain[0]), recua::median(ratios[0]),
        recua::median(plain[1]), recua::median(ratios[1]));
  }
}
