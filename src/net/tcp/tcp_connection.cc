// The data path calls recv and sendmsg on the descriptor itself; Asio is asked only to wait.
#include "net/tcp/tcp_connection.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>

namespace recua::net {
namespace {

using asio::ip::tcp;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t kPartsMax =
    64;  // Of one gathered write; further parts wait for the next call.

/// Shared with the handlers that Asio still holds, so that closing and destroying are always safe.
struct TcpState {
  explicit TcpState(tcp::socket s, std::string p) : socket(std::move(s)), peer(std::move(p)) {}

  tcp::socket socket;
  std::string peer;
  bool closed = false;
  ReadyCallback read_ready;
  ReadyCallback write_ready;
  bool waits_to_read = false;
  bool waits_to_write = false;
  std::uint32_t n_reads = 0;  // That brought something.
};

/// Whoever only receives acknowledges within each read, before it returns: 1 to 2 us that a message
/// waits for. Linux holds acknowledgements back where answers are expected, until one of its timers
/// runs out, so that is said again now and then. What a sender cannot go on without (half a
/// segment's worth of data, a closing window) is acknowledged at once all the same.
constexpr std::uint32_t kReadsPerDelay = 64;

void delay_acknowledgements(int fd) {
#if defined(TCP_QUICKACK)
  const int off = 0;
  ::setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof(off));  // Helps where it can be done.
#endif
}

/// An IPv4 address inside an IPv6 one as IPv4.
asio::ip::address plain_address(const asio::ip::address& address) {
  if (!address.is_v6() || !address.to_v6().is_v4_mapped()) return address;
  return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6());
}

Error closed_here(const TcpState& state) {
  return Error{ErrorCode::kCancelled,
               fmt::format("the connection to {} was closed on this side", state.peer)};
}
Error ended(const TcpState& state) {
  return Error{ErrorCode::kUnavailable, fmt::format("{} closed the connection", state.peer)};
}

/// What a system error on an established connection means.
Error failed(const TcpState& state, int system_error) {
  if (state.closed || system_error == ECANCELED || system_error == EBADF) return closed_here(state);
  const bool gone = system_error == ECONNRESET || system_error == EPIPE ||
                    system_error == ETIMEDOUT || system_error == EHOSTUNREACH ||
                    system_error == ENETUNREACH || system_error == ENETDOWN ||
                    system_error == ECONNABORTED || system_error == ENOTCONN;
  return Error{
      gone ? ErrorCode::kUnavailable : ErrorCode::kIo,
      fmt::format("the connection to {} broke: {}", state.peer, std::strerror(system_error))};
}

Error failed(const TcpState& state, const boost::system::error_code& error) {
  if (state.closed) return closed_here(state);
  if (error == asio::error::eof) return ended(state);
  return failed(state, error.value());
}

void wait(const std::shared_ptr<TcpState>& state, tcp::socket::wait_type direction,
          ReadyCallback TcpState::* callback, bool TcpState::* waits) {
  if ((*state).*waits) return;  // The wait under way will call the newest callback.
  (*state).*waits = true;
  state->socket.async_wait(direction, [state, callback, waits](boost::system::error_code) {
    (*state).*waits = false;
    if (state->closed) return;
    // An error also wakes: the next try_read or try_write reports it.
    if (ReadyCallback ready = std::exchange((*state).*callback, {})) ready();
  });
}

class TcpConnection : public Connection {
 public:
  explicit TcpConnection(std::shared_ptr<TcpState> state) : state_(std::move(state)) {}
  ~TcpConnection() override {
    if (state_) do_close();
  }

  [[nodiscard]] const std::string& peer() const override { return state_->peer; }
  [[nodiscard]] std::string local_address() const override {
    boost::system::error_code error;
    const tcp::endpoint local = state_->socket.local_endpoint(error);
    return error ? std::string() : plain_address(local.address()).to_string();
  }

  asio::awaitable<Result<void>> read(std::span<std::byte> out) override {
    return read_all(state_, out);
  }
  asio::awaitable<Result<void>> write(std::span<const std::byte> bytes) override {
    return write_all(state_, bytes);
  }

  Result<std::size_t> try_read(std::span<std::byte> out) override {
    if (state_->closed) return closed_here(*state_);
    if (out.empty()) return std::size_t{0};
    while (true) {
      const ssize_t n =
          ::recv(state_->socket.native_handle(), out.data(), out.size(), MSG_DONTWAIT);
      if (n > 0) return count_read(n);
      if (n == 0) return ended(*state_);
      if (errno == EAGAIN || errno == EWOULDBLOCK) return std::size_t{0};
      if (errno != EINTR) return failed(*state_, errno);
    }
  }

  Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) override {
    if (state_->closed) return closed_here(*state_);
    std::array<iovec, kPartsMax> vectors;
    std::size_t n_vectors = 0;
    for (const std::span<const std::byte> part : parts) {
      if (part.empty()) continue;
      if (n_vectors == kPartsMax) break;
      // sendmsg only reads; iovec has no const.
      vectors[n_vectors++] = iovec{const_cast<std::byte*>(part.data()), part.size()};
    }
    if (n_vectors == 0) return std::size_t{0};
    msghdr message{};
    message.msg_iov = vectors.data();
    message.msg_iovlen = n_vectors;
    while (true) {
      const ssize_t n =
          ::sendmsg(state_->socket.native_handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n >= 0) return static_cast<std::size_t>(n);
      if (errno == EAGAIN || errno == EWOULDBLOCK) return std::size_t{0};
      if (errno != EINTR) return failed(*state_, errno);
    }
  }

  void arm_read(ReadyCallback ready) override {
    if (state_->closed) return;
    state_->read_ready = std::move(ready);
    wait(state_, tcp::socket::wait_read, &TcpState::read_ready, &TcpState::waits_to_read);
  }
  void arm_write(ReadyCallback ready) override {
    if (state_->closed) return;
    state_->write_ready = std::move(ready);
    wait(state_, tcp::socket::wait_write, &TcpState::write_ready, &TcpState::waits_to_write);
  }

  [[nodiscard]] int descriptor() const override {
    return state_->closed ? -1 : state_->socket.native_handle();
  }

  Result<std::unique_ptr<Connection>> move_to(asio::any_io_executor executor) override {
    if (state_->closed) return closed_here(*state_);
    boost::system::error_code error;
    const tcp::endpoint local = state_->socket.local_endpoint(error);
    if (error) return failed(*state_, error);
    const auto descriptor = state_->socket.release(error);
    state_->closed = true;  // Whatever Asio still holds of the old state finds it closed.
    if (error) return failed(*state_, error);
    tcp::socket socket(executor);
    socket.assign(local.protocol(), descriptor, error);
    if (error) {
      return Error{ErrorCode::kIo,
                   fmt::format("the connection to {} cannot move to another loop: {}", state_->peer,
                               error.message())};
    }
    return make_tcp_connection(std::move(socket), state_->peer);
  }

  void close() override { do_close(); }

 private:
  std::size_t count_read(ssize_t n) {
    if (state_->n_reads++ % kReadsPerDelay == 0) {
      delay_acknowledgements(state_->socket.native_handle());
    }
    return static_cast<std::size_t>(n);
  }

  static asio::awaitable<Result<void>> read_all(std::shared_ptr<TcpState> state,
                                                std::span<std::byte> out) {
    if (state->closed) co_return closed_here(*state);
    if (out.empty()) co_return ok();
    const auto buffer = asio::buffer(out.data(), out.size());
    const auto [error, n] = co_await asio::async_read(state->socket, buffer, kAwait);
    if (error) co_return failed(*state, error);
    co_return ok();
  }
  static asio::awaitable<Result<void>> write_all(std::shared_ptr<TcpState> state,
                                                 std::span<const std::byte> bytes) {
    if (state->closed) co_return closed_here(*state);
    if (bytes.empty()) co_return ok();
    const auto buffer = asio::buffer(bytes.data(), bytes.size());
    const auto [error, n] = co_await asio::async_write(state->socket, buffer, kAwait);
    if (error) co_return failed(*state, error);
    co_return ok();
  }

  void do_close() {
    if (state_->closed) return;
    state_->closed = true;
    state_->read_ready = {};
    state_->write_ready = {};
    boost::system::error_code ignored;
    state_->socket.shutdown(tcp::socket::shutdown_both, ignored);
    state_->socket.close(ignored);
  }

  std::shared_ptr<TcpState> state_;
};

void notice_dead_paths(tcp::socket& socket, boost::system::error_code& error) {
  // Control connections have heartbeats; a data connection whose path has died between two hosts
  // that still live would otherwise wait for TCP's own limit, a quarter of an hour.
  using UserTimeout = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_USER_TIMEOUT>;
  using KeepIdle = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPIDLE>;
  using KeepInterval = asio::detail::socket_option::integer<IPPROTO_TCP, TCP_KEEPINTVL>;
  socket.set_option(UserTimeout(10'000),
                    error);  // Milliseconds that sent bytes may stay unanswered.
  if (!error) socket.set_option(asio::socket_base::keep_alive(true), error);
  if (!error) socket.set_option(KeepIdle(5), error);
  if (!error) socket.set_option(KeepInterval(2), error);
}

}  // namespace

Result<std::unique_ptr<Connection>> make_tcp_connection(tcp::socket socket, std::string peer) {
  boost::system::error_code error;
  socket.set_option(tcp::no_delay(true), error);
  if (!error) socket.non_blocking(true, error);
  if (!error) notice_dead_paths(socket, error);
  if (error) {
    return Error{ErrorCode::kIo,
                 fmt::format("cannot set up the connection to {}: {}", peer, error.message())};
  }
  auto state = std::make_shared<TcpState>(std::move(socket), std::move(peer));
  return std::unique_ptr<Connection>(std::make_unique<TcpConnection>(std::move(state)));
}

std::string to_string(const tcp::endpoint& endpoint) {
  return Endpoint{.host = plain_address(endpoint.address()).to_string(), .port = endpoint.port()}
      .to_string();
}

}  // namespace recua::net
