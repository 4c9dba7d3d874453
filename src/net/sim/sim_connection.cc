#include <algorithm>
#include <utility>

#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include "net/sim/sim_link.h"

namespace recua::net {
namespace {

/// Why side can read no more, when nothing is left to read.
std::optional<Error> read_error(const SimLink& link, int side) {
  const std::string& peer = link.peers[static_cast<std::size_t>(side)];
  if (link.closed[static_cast<std::size_t>(side)]) {
    return Error{ErrorCode::kCancelled,
                 fmt::format("the connection to {} was closed on this side", peer)};
  }
  if (link.broken) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("the connection to {} broke: {}", peer, *link.broken)};
  }
  const SimPipe& in = link.pipes[static_cast<std::size_t>(1 - side)];
  if (in.end_arrived && in.arrived.empty())
    return Error{ErrorCode::kUnavailable, fmt::format("{} closed the connection", peer)};
  return std::nullopt;
}

/// Why side can write no more.
std::optional<Error> write_error(const SimLink& link, int side) {
  const SimPipe& in = link.pipes[static_cast<std::size_t>(1 - side)];
  if (in.end_arrived && !link.closed[static_cast<std::size_t>(side)] && !link.broken) {
    return Error{ErrorCode::kUnavailable, fmt::format("{} closed the connection",
                                                      link.peers[static_cast<std::size_t>(side)])};
  }
  return read_error(link, side);
}

Result<std::size_t> read_some(SimLink& link, int side, std::span<std::byte> out) {
  if (auto error = read_error(link, side)) return std::move(*error);
  SimPipe& in = link.pipes[static_cast<std::size_t>(1 - side)];
  const std::size_t n = std::min(out.size(), in.arrived.size());
  const auto end = in.arrived.begin() + static_cast<std::ptrdiff_t>(n);
  std::copy(in.arrived.begin(), end, out.begin());
  in.arrived.erase(in.arrived.begin(), end);
  if (n > 0) link.wake_writer(in);
  return n;
}

std::size_t room(const SimLink& link, const SimPipe& pipe, std::size_t window_bytes) {
  if (link.network == nullptr) return 0;
  const std::size_t used = pipe.n_in_flight + pipe.arrived.size();
  return used >= window_bytes ? 0 : window_bytes - used;
}

class SimConnection : public Connection {
 public:
  SimConnection(std::shared_ptr<SimLink> link, int side) : link_(std::move(link)), side_(side) {}
  ~SimConnection() override {
    if (link_) link_->close(side_);
  }

  [[nodiscard]] const std::string& peer() const override {
    return link_->peers[static_cast<std::size_t>(side_)];
  }
  [[nodiscard]] std::string local_address() const override {
    return link_->hosts[static_cast<std::size_t>(side_)];
  }

  asio::awaitable<Result<void>> read(std::span<std::byte> out) override {
    return read_all(link_, side_, out);
  }
  asio::awaitable<Result<void>> write(std::span<const std::byte> bytes) override {
    return write_all(link_, side_, bytes);
  }

  Result<std::size_t> try_read(std::span<std::byte> out) override {
    return read_some(*link_, side_, out);
  }
  Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) override {
    return write_some(link_, side_, parts);
  }

  void arm_read(ReadyCallback ready) override {
    SimPipe& in = link_->pipes[static_cast<std::size_t>(1 - side_)];
    in.read_ready = std::move(ready);
    if (!in.arrived.empty() || read_error(*link_, side_)) link_->wake_reader(in);
  }
  void arm_write(ReadyCallback ready) override {
    SimPipe& out = link_->pipes[static_cast<std::size_t>(side_)];
    out.write_ready = std::move(ready);
    if (write_error(*link_, side_) || window_room(*link_, out) > 0) link_->wake_writer(out);
  }

  Result<std::unique_ptr<Connection>> move_to(asio::any_io_executor) override {
    if (auto error = read_error(*link_, side_); error && error->code == ErrorCode::kCancelled)
      return std::move(*error);
    return std::unique_ptr<Connection>(
        std::make_unique<SimConnection>(std::exchange(link_, nullptr), side_));
  }

  void close() override {
    if (link_) link_->close(side_);
  }

 private:
  static std::size_t window_room(const SimLink& link, const SimPipe& pipe) {
    return link.network == nullptr ? 0 : room(link, pipe, link.network->options().window_bytes);
  }

  static Result<std::size_t> write_some(const std::shared_ptr<SimLink>& link, int side,
                                        std::span<const std::span<const std::byte>> parts) {
    if (auto error = write_error(*link, side)) return std::move(*error);
    SimPipe& out = link->pipes[static_cast<std::size_t>(side)];
    std::size_t left = window_room(*link, out);
    std::vector<std::byte> segment;
    std::size_t n = 0;
    for (std::span<const std::byte> part : parts) {
      while (!part.empty() && left > 0) {
        const std::size_t most = link->network->options().segment_bytes - segment.size();
        const std::size_t taken = std::min({part.size(), left, most});
        segment.insert(segment.end(), part.begin(),
                       part.begin() + static_cast<std::ptrdiff_t>(taken));
        part = part.subspan(taken);
        left -= taken;
        n += taken;
        if (taken == most) send_segment(link, side, std::exchange(segment, {}));
      }
    }
    if (!segment.empty()) send_segment(link, side, std::move(segment));
    return n;
  }

  static void send_segment(const std::shared_ptr<SimLink>& link, int side,
                           std::vector<std::byte> segment) {
    link->pipes[static_cast<std::size_t>(side)].n_in_flight += segment.size();
    link->send(side, [link, side, bytes = std::move(segment)] {
      SimPipe& pipe = link->pipes[static_cast<std::size_t>(side)];
      pipe.n_in_flight -= bytes.size();
      pipe.arrived.insert(pipe.arrived.end(), bytes.begin(), bytes.end());
      link->wake_reader(pipe);
    });
  }

  static asio::awaitable<Result<void>> read_all(std::shared_ptr<SimLink> link, int side,
                                                std::span<std::byte> out) {
    while (!out.empty()) {
      RECUA_CO_ASSIGN_OR_RETURN(const std::size_t n, read_some(*link, side, out));
      out = out.subspan(n);
      if (n == 0) co_await link->pipes[static_cast<std::size_t>(1 - side)].readable.wait();
    }
    co_return ok();
  }
  static asio::awaitable<Result<void>> write_all(std::shared_ptr<SimLink> link, int side,
                                                 std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::array<std::span<const std::byte>, 1> parts{bytes};
      RECUA_CO_ASSIGN_OR_RETURN(const std::size_t n, write_some(link, side, parts));
      bytes = bytes.subspan(n);
      if (n == 0) co_await link->pipes[static_cast<std::size_t>(side)].writable.wait();
    }
    co_return ok();
  }

  std::shared_ptr<SimLink> link_;
  int side_;
};

}  // namespace

SimLink::SimLink(SimNetwork& n, const asio::any_io_executor& e,
                 std::array<std::string, 2> host_names, std::array<std::string, 2> peer_names)
    : network(&n),
      executor(e),
      hosts(std::move(host_names)),
      peers(std::move(peer_names)),
      pipes{{SimPipe(e), SimPipe(e)}} {}

void SimLink::wake_reader(SimPipe& pipe) {
  pipe.readable.notify_all();
  if (pipe.read_ready) asio::post(executor, std::exchange(pipe.read_ready, {}));
}
void SimLink::wake_writer(SimPipe& pipe) {
  pipe.writable.notify_all();
  if (pipe.write_ready) asio::post(executor, std::exchange(pipe.write_ready, {}));
}

void SimLink::send(int side, std::function<void()> arrival) {
  if (network == nullptr) return;
  SimPipe& pipe = pipes[static_cast<std::size_t>(side)];
  SimLoop& loop = network->loop();
  pipe.last_arrival = std::max(pipe.last_arrival, loop.now() + network->random_delay());
  loop.schedule(pipe.last_arrival, [self = shared_from_this(), side, arrival = std::move(arrival)] {
    if (self->broken || self->network == nullptr) return;
    SimPipe& out = self->pipes[static_cast<std::size_t>(side)];
    if (!out.held.empty() || self->network->blocked(self->hosts[0], self->hosts[1])) {
      out.held.push_back(arrival);
    } else {
      arrival();
    }
  });
}

void SimLink::release_held() {
  for (const int side : {0, 1}) {
    if (network == nullptr || pipes[static_cast<std::size_t>(side)].held.empty()) continue;
    SimLoop& loop = network->loop();
    // Until then, what arrives queues up behind what is held, so that nothing overtakes.
    loop.schedule(loop.now() + network->random_delay(), [self = shared_from_this(), side] {
      if (self->broken || self->network == nullptr) return;
      if (self->network->blocked(self->hosts[0], self->hosts[1])) return;
      SimPipe& pipe = self->pipes[static_cast<std::size_t>(side)];
      for (const std::function<void()>& arrival : std::exchange(pipe.held, {})) arrival();
    });
  }
}

void SimLink::close(int side) {
  bool& is_closed = closed[static_cast<std::size_t>(side)];
  if (is_closed) return;
  is_closed = true;
  SimPipe& out = pipes[static_cast<std::size_t>(side)];
  SimPipe& in = pipes[static_cast<std::size_t>(1 - side)];
  in.read_ready = {};
  out.write_ready = {};
  in.readable.notify_all();
  out.writable.notify_all();
  if (broken) return;
  send(side, [self = shared_from_this(), side] {
    SimPipe& ended = self->pipes[static_cast<std::size_t>(side)];
    ended.end_arrived = true;
    self->wake_reader(ended);
    self->wake_writer(self->pipes[static_cast<std::size_t>(1 - side)]);
  });
}

void SimLink::break_off(const std::string& why) {
  if (broken) return;
  broken = why;
  for (SimPipe& pipe : pipes) {
    pipe.held.clear();
    wake_reader(pipe);
    wake_writer(pipe);
  }
}

std::unique_ptr<Connection> make_sim_connection(std::shared_ptr<SimLink> link, int side) {
  return std::make_unique<SimConnection>(std::move(link), side);
}

}  // namespace recua::net
