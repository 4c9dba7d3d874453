#include <charconv>
#include <optional>

#include <fmt/format.h>

#include "net/connection.h"

namespace recua::net {
namespace {

Error bad_endpoint(std::string_view text, std::string_view why) {
  return Error{
      ErrorCode::kInvalidArgument,
      fmt::format("'{}' is no address: {}; write host:port, 10.0.0.5:7500, [fe80::1]:7500 or "
                  ":7500 for all addresses of this machine",
                  text, why)};
}

/// Letters, digits and what else names and addresses are made of; no spaces, slashes or quotes.
bool plausible_host(std::string_view host) {
  for (const char c : host) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (!letter && c != '.' && c != '-' && c != '_' && c != ':' && c != '%') return false;
  }
  return host.size() <= 255;
}

}  // namespace

std::string Endpoint::to_string() const {
  if (host.find(':') != std::string::npos) return fmt::format("[{}]:{}", host, port);
  return fmt::format("{}:{}", host, port);
}

Result<Endpoint> Endpoint::parse(std::string_view text, std::uint16_t default_port) {
  std::string_view host = text;
  std::optional<std::string_view> port_text;
  if (text.empty()) return bad_endpoint(text, "it is empty");
  if (text.front() == '[') {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return bad_endpoint(text, "the closing ] is missing");
    host = text.substr(1, end - 1);
    if (host.find(':') == std::string_view::npos)
      return bad_endpoint(text, "the brackets hold no IPv6 address");
    const std::string_view rest = text.substr(end + 1);
    if (!rest.empty() && rest.front() != ':') return bad_endpoint(text, "after ] comes :port");
    if (!rest.empty()) port_text = rest.substr(1);
  } else if (const std::size_t colon = text.find(':'); colon != std::string_view::npos) {
    if (text.find(':', colon + 1) == std::string_view::npos) {
      host = text.substr(0, colon);
      port_text = text.substr(colon + 1);
    }  // More than one colon: an IPv6 address without a port.
  }
  if (!plausible_host(host)) return bad_endpoint(text, "the host has characters that no name has");

  Endpoint out{.host = std::string(host), .port = default_port};
  if (port_text) {
    const char* const end = port_text->data() + port_text->size();
    const auto [stop, error] = std::from_chars(port_text->data(), end, out.port);
    if (error != std::errc() || stop != end || port_text->empty())
      return bad_endpoint(text, fmt::format("'{}' is no port between 0 and 65535", *port_text));
  }
  return out;
}

}  // namespace recua::net
