#pragma once
/// TcpNetwork: connections by TCP over IPv4 and IPv6, without delay (TCP_NODELAY).
///
/// listen(): an empty host means all addresses of both families; port 0 lets the system choose.
/// connect(): resolves names, tries each address in turn; the timeout covers all of it.
/// Threads: the executor's loop only. A connection that was moved (move_to) belongs to its new
/// loop.

#include "net/connection.h"

namespace recua::net {

class TcpNetwork : public Network {
 public:
  explicit TcpNetwork(asio::any_io_executor executor) : executor_(std::move(executor)) {}

  asio::awaitable<Result<std::unique_ptr<Connection>>> connect(Endpoint endpoint,
                                                               Duration timeout) override;
  Result<std::unique_ptr<Listener>> listen(const Endpoint& endpoint) override;

 private:
  asio::any_io_executor executor_;
};

}  // namespace recua::net
