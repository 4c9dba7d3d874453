#include "net/tcp/tcp_network.h"

#include <optional>
#include <vector>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "net/deadline.h"
#include "net/tcp/tcp_connection.h"

namespace recua::net {
namespace {

using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

/// One attempt to connect, shared with its timer's handler.
struct Attempt {
  explicit Attempt(const asio::any_io_executor& executor)
      : resolver(executor), socket(executor), timer(executor) {}

  tcp::resolver resolver;
  tcp::socket socket;
  asio::steady_timer timer;
  bool timed_out = false;
};

Error connect_error(const Endpoint& endpoint, const error_code& error) {
  const std::string where = endpoint.to_string();
  if (error == asio::error::connection_refused) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("{} refused the connection: nothing listens there; start "
                             "'recua worker --listen :{}' on that machine",
                             where, endpoint.port)};
  }
  return Error{ErrorCode::kUnavailable,
               fmt::format("cannot connect to {}: {}", where, error.message())};
}

class TcpListener : public Listener {
 public:
  TcpListener(tcp::acceptor acceptor, Endpoint endpoint)
      : state_(std::make_shared<State>(std::move(acceptor))), endpoint_(std::move(endpoint)) {}
  ~TcpListener() override { TcpListener::close(); }

  [[nodiscard]] const Endpoint& endpoint() const override { return endpoint_; }

  asio::awaitable<Result<std::unique_ptr<Connection>>> accept() override {
    return do_accept(state_, endpoint_.to_string());
  }

  void close() override {
    error_code ignored;
    state_->closed = true;
    state_->acceptor.close(ignored);
  }

 private:
  struct State {
    explicit State(tcp::acceptor a) : acceptor(std::move(a)) {}
    tcp::acceptor acceptor;
    bool closed = false;
  };

  static asio::awaitable<Result<std::unique_ptr<Connection>>> do_accept(
      std::shared_ptr<State> state, std::string where) {
    while (true) {
      if (state->closed) {
        co_return Error{ErrorCode::kCancelled, fmt::format("no longer listening on {}", where)};
      }
      tcp::socket socket(state->acceptor.get_executor());
      const auto [error] = co_await state->acceptor.async_accept(socket, kAwait);
      if (state->closed || error == asio::error::connection_aborted) continue;
      if (error) {
        const bool full = error.value() == EMFILE || error.value() == ENFILE ||
                          error.value() == ENOBUFS || error.value() == ENOMEM;
        co_return Error{full ? ErrorCode::kResourceExhausted : ErrorCode::kIo,
                        fmt::format("cannot accept on {}: {}", where, error.message())};
      }
      error_code gone;
      const tcp::endpoint peer = socket.remote_endpoint(gone);
      if (gone) continue;  // It left before we looked.
      Result<std::unique_ptr<Connection>> out =
          make_tcp_connection(std::move(socket), to_string(peer));
      if (out.ok()) co_return out;
    }
  }

  std::shared_ptr<State> state_;
  Endpoint endpoint_;
};

/// Opens, binds and listens on one address.
Result<tcp::acceptor> open_acceptor(const asio::any_io_executor& executor,
                                    const tcp::endpoint& address, bool dual_stack) {
  tcp::acceptor acceptor(executor);
  error_code error;
  acceptor.open(address.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && dual_stack) acceptor.set_option(asio::ip::v6_only(false), error);
  if (!error) acceptor.bind(address, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) return acceptor;
  const char* const hint = error == asio::error::address_in_use
                               ? "; another program listens there, choose another port"
                           : error == asio::error::access_denied ? "; ports below 1024 need root"
                                                                 : "";
  return Error{error == asio::error::address_in_use ? ErrorCode::kUnavailable : ErrorCode::kIo,
               fmt::format("cannot listen on {}: {}{}", to_string(address), error.message(), hint)};
}

}  // namespace

asio::awaitable<Result<std::unique_ptr<Connection>>> TcpNetwork::connect(Endpoint endpoint,
                                                                         Duration timeout) {
  const std::shared_ptr<Attempt> attempt = std::make_shared<Attempt>(executor_);
  attempt->timer.expires_after(
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(timeout));
  attempt->timer.async_wait([attempt](error_code cancelled) {
    if (cancelled) return;
    error_code ignored;
    attempt->timed_out = true;
    attempt->resolver.cancel();
    attempt->socket.close(ignored);
  });

  // An empty host means this machine, as for listen().
  const std::string host = endpoint.host.empty() ? "localhost" : endpoint.host;
  const std::string service = fmt::format("{}", endpoint.port);
  const auto flags = tcp::resolver::numeric_service;
  auto [resolve_error, addresses] =
      co_await attempt->resolver.async_resolve(host, service, flags, kAwait);
  error_code connect_failure = resolve_error;
  if (!resolve_error && !attempt->timed_out) {
    auto [error, address] = co_await asio::async_connect(attempt->socket, addresses, kAwait);
    connect_failure = error;
  }
  attempt->timer.cancel();

  if (attempt->timed_out) {
    co_return Error{
        ErrorCode::kTimeout,
        fmt::format("no answer from {} within {}: is the machine up, the address right, "
                    "and port {} open in its firewall?",
                    endpoint.to_string(), to_string(timeout), endpoint.port)};
  }
  if (resolve_error) {
    co_return Error{ErrorCode::kUnavailable,
                    fmt::format("cannot find the host '{}' of {}: {}; check the name, or give its "
                                "address",
                                host, endpoint.to_string(), resolve_error.message())};
  }
  if (connect_failure) co_return connect_error(endpoint, connect_failure);
  co_return make_tcp_connection(std::move(attempt->socket), endpoint.to_string());
}

Result<std::unique_ptr<Listener>> TcpNetwork::listen(const Endpoint& endpoint) {
  error_code error;
  std::vector<tcp::endpoint> candidates;
  const bool any = endpoint.host.empty();
  if (any) {  // One IPv6 socket serves both families; a system without IPv6 gets an IPv4 one.
    candidates = {tcp::endpoint(tcp::v6(), endpoint.port), tcp::endpoint(tcp::v4(), endpoint.port)};
  } else {
    // At start-up, before there is anything to block.
    tcp::resolver resolver(executor_);
    const auto found =
        resolver.resolve(endpoint.host, fmt::format("{}", endpoint.port),
                         tcp::resolver::passive | tcp::resolver::numeric_service, error);
    if (error) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("cannot listen on {}: '{}' is no address of this machine ({}); write "
                      ":{} for all addresses",
                      endpoint.to_string(), endpoint.host, error.message(), endpoint.port)};
    }
    for (const auto& entry : found) candidates.push_back(entry.endpoint());
  }

  std::optional<Error> first_error;
  for (const tcp::endpoint& candidate : candidates) {
    Result<tcp::acceptor> acceptor =
        open_acceptor(executor_, candidate, any && candidate.address().is_v6());
    if (!acceptor.ok()) {
      if (!first_error) first_error = std::move(acceptor).error();
      // A port that is taken on both families must not be half ours.
      if (first_error->code == ErrorCode::kUnavailable) break;
      continue;
    }
    const tcp::endpoint local = acceptor->local_endpoint(error);
    Endpoint real{.host = local.address().to_string(), .port = local.port()};
    return std::unique_ptr<Listener>(
        std::make_unique<TcpListener>(std::move(acceptor).value(), std::move(real)));
  }
  return std::move(*first_error);
}

}  // namespace recua::net
