#pragma once
/// The inside of one simulated connection: two pipes between two sides. Only net/sim includes this.

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "net/connection.h"
#include "net/event.h"
#include "net/sim/sim_network.h"

namespace recua::net {

/// One direction: bytes on their way and bytes that wait to be read.
struct SimPipe {
  explicit SimPipe(const asio::any_io_executor& executor)
      : readable(executor), writable(executor) {}

  std::deque<std::byte> arrived;
  std::size_t n_in_flight = 0;  // Sent and not arrived, held back or not.
  bool end_arrived = false;
  TimePoint last_arrival{};                 // Nothing overtakes.
  std::vector<std::function<void()>> held;  // Arrivals that a fault holds back, in order.
  Event readable;
  Event writable;
  ReadyCallback read_ready;
  ReadyCallback write_ready;
};

struct SimLink : std::enable_shared_from_this<SimLink> {
  SimLink(SimNetwork& n, const asio::any_io_executor& executor,
          std::array<std::string, 2> host_names, std::array<std::string, 2> peer_names);

  /// Wakes whoever reads (writes) on the pipe.
  void wake_reader(SimPipe& pipe);
  void wake_writer(SimPipe& pipe);
  /// Plans that `arrival` happens at the far end of side's pipe, after a delay and in order.
  void send(int side, std::function<void()> arrival);
  /// Plans again what a fault that is over now held back.
  void release_held();
  void close(int side);
  /// Both ends see kUnavailable.
  void break_off(const std::string& why);

  SimNetwork* network;  // Null when the network is gone: nothing moves any more.
  asio::any_io_executor executor;
  std::array<std::string, 2> hosts;
  std::array<std::string, 2> peers;  // As each side calls the other.
  std::array<SimPipe, 2> pipes;      // pipes[s]: what side s sends.
  std::array<bool, 2> closed{};
  std::optional<std::string> broken;
};

std::unique_ptr<Connection> make_sim_connection(std::shared_ptr<SimLink> link, int side);

}  // namespace recua::net
