#pragma once
/// The Connection over a connected TCP socket. Made by TcpNetwork only.

#include <memory>
#include <string>

#include <boost/asio/ip/tcp.hpp>

#include "net/connection.h"

namespace recua::net {

/// Takes the socket over: no delay, non-blocking. kIo: the system refused an option.
Result<std::unique_ptr<Connection>> make_tcp_connection(asio::ip::tcp::socket socket,
                                                        std::string peer);

/// "10.0.0.5:7500"; an IPv4 address inside an IPv6 one is written as IPv4.
std::string to_string(const asio::ip::tcp::endpoint& endpoint);

}  // namespace recua::net
