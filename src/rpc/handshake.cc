#include "rpc/handshake.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/sha256.h"
#include "net/deadline.h"
#include "rpc/frame.h"
#include "rpc/handshake_wire.h"
#include "rpc/recua.pb.h"
#include "rpc/wire_error.h"

namespace recua::rpc {
namespace {

constexpr net::Duration kRejectTimeout = std::chrono::seconds(2);
constexpr std::byte kTlsFirstByte{0x16};

std::string versions(std::uint32_t oldest, std::uint32_t newest) {
  return oldest == newest ? fmt::format("{}", newest) : fmt::format("{} to {}", oldest, newest);
}

wire::Hello make_hello(const PeerInfo& self) {
  wire::Hello hello;
  hello.set_protocol_version(self.protocol_version);
  hello.set_oldest_version(kOldestProtocolVersion);
  for (const std::uint32_t feature : self.features) hello.add_features(feature);
  hello.set_role(wire::ROLE_CONTROL);
  hello.set_name(wire_text(self.name, kNameBytesMax));
  hello.set_software_version(wire_text(self.software_version, kNameBytesMax));
  to_wire(self, *hello.mutable_capabilities());
  return hello;
}

wire::Welcome make_welcome(const PeerInfo& self, const PeerInfo& peer) {
  wire::Welcome welcome;
  welcome.set_protocol_version(peer.protocol_version);
  for (const std::uint32_t feature : common(peer.features, self.features))
    welcome.add_features(feature);
  welcome.set_name(wire_text(self.name, kNameBytesMax));
  welcome.set_software_version(wire_text(self.software_version, kNameBytesMax));
  to_wire(self, *welcome.mutable_capabilities());
  return welcome;
}

/// Sends a Hello and reads the Welcome, within the caller's deadline.
net::asio::awaitable<Result<wire::Welcome>> exchange_hello(net::Connection& connection,
                                                           const wire::Hello& hello) {
  RECUA_CO_RETURN_IF_ERROR(
      co_await write_frame(connection, FrameKind::kHello, hello, kHandshakeFrameBytesMax));
  RECUA_CO_ASSIGN_OR_RETURN(const Frame frame,
                            co_await read_frame(connection, kHandshakeFrameBytesMax));
  if (frame.kind == FrameKind::kReject) {
    wire::Reject reject;
    RECUA_CO_RETURN_IF_ERROR(parse_payload(frame, connection.peer(), reject));
    co_return from_peer(connection.peer(), reject.code(), reject.message());
  }
  if (frame.kind != FrameKind::kWelcome) {
    co_return Error{
        ErrorCode::kProtocol,
        fmt::format("{} answered Hello with a frame of kind {}, must be 2 (Welcome) or 3 "
                    "(Reject)",
                    connection.peer(), static_cast<int>(frame.kind))};
  }
  wire::Welcome welcome;
  RECUA_CO_RETURN_IF_ERROR(parse_payload(frame, connection.peer(), welcome));
  const std::uint32_t version = welcome.protocol_version();
  if (version < hello.oldest_version() || version > hello.protocol_version()) {
    co_return Error{
        ErrorCode::kProtocol,
        fmt::format("{} wants to speak protocol version {}, was offered {}", connection.peer(),
                    version, versions(hello.oldest_version(), hello.protocol_version()))};
  }
  co_return welcome;
}

/// Reads the first frame of a connection. What is no recua frame at all is answered in its own
/// language where that is easy, so that the person over there sees a reason.
net::asio::awaitable<Result<wire::Hello>> read_hello(net::Connection& connection) {
  Result<Frame> frame = co_await read_frame(connection, kHandshakeFrameBytesMax);
  if (!frame.ok()) co_return std::move(frame).error();
  if (frame->kind != FrameKind::kHello) {
    co_return Error{ErrorCode::kProtocol,
                    fmt::format("{} began with a frame of kind {}, must be 1 (Hello)",
                                connection.peer(), static_cast<int>(frame->kind))};
  }
  wire::Hello hello;
  RECUA_CO_RETURN_IF_ERROR(parse_payload(*frame, connection.peer(), hello));
  co_return hello;
}

/// The newest version that both speak.
Result<std::uint32_t> agree_on_version(const wire::Hello& hello, const PeerInfo& self,
                                       const std::string& peer) {
  const std::uint32_t newest = std::min(hello.protocol_version(), self.protocol_version);
  if (hello.oldest_version() <= hello.protocol_version() && newest >= hello.oldest_version() &&
      newest >= kOldestProtocolVersion)
    return newest;
  return Error{
      ErrorCode::kUnsupported,
      fmt::format("no common protocol version: {} (recua {}) speaks {}, {} (recua {}) speaks "
                  "{}; update the older one",
                  peer, wire_text(hello.software_version(), kNameBytesMax),
                  versions(hello.oldest_version(), hello.protocol_version()), self.name,
                  self.software_version, versions(kOldestProtocolVersion, self.protocol_version))};
}

/// Everything of a Hello that does not depend on sessions.
Result<ServerHandshake> check_hello(const wire::Hello& hello, const PeerInfo& self,
                                    const std::string& peer) {
  RECUA_ASSIGN_OR_RETURN(const std::uint32_t version, agree_on_version(hello, self, peer));
  ServerHandshake out;
  RECUA_ASSIGN_OR_RETURN(out.peer, from_wire(hello, peer));
  out.peer.protocol_version = version;
  out.peer.features = common(out.peer.features, self.features);
  if (hello.role() == wire::ROLE_CONTROL) return out;
  if (hello.role() != wire::ROLE_CHANNEL || !hello.has_channel()) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("{} asked for role {}, must be 1 (control) or 2 (channel, with its "
                             "channel field)",
                             peer, static_cast<int>(hello.role()))};
  }
  RECUA_ASSIGN_OR_RETURN(out.channel, from_wire(hello.channel(), peer));
  return out;
}

/// Whether the first bytes were a frame at all decides how to say no.
class FirstByteRecorder : public net::Connection {
 public:
  explicit FirstByteRecorder(net::Connection& inner) : inner_(inner) {}
  [[nodiscard]] std::span<const std::byte> first_bytes() const { return first_; }

  [[nodiscard]] const std::string& peer() const override { return inner_.peer(); }
  [[nodiscard]] std::string local_address() const override { return inner_.local_address(); }
  net::asio::awaitable<Result<void>> read(std::span<std::byte> out) override {
    Result<void> result = co_await inner_.read(out);
    if (result.ok() && first_.empty()) first_.assign(out.begin(), out.end());
    co_return result;
  }
  net::asio::awaitable<Result<void>> write(std::span<const std::byte> bytes) override {
    return inner_.write(bytes);
  }
  Result<std::size_t> try_read(std::span<std::byte> out) override { return inner_.try_read(out); }
  Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) override {
    return inner_.try_write(parts);
  }
  void arm_read(net::ReadyCallback ready) override { inner_.arm_read(std::move(ready)); }
  void arm_write(net::ReadyCallback ready) override { inner_.arm_write(std::move(ready)); }
  Result<std::unique_ptr<net::Connection>> move_to(net::asio::any_io_executor executor) override {
    return inner_.move_to(std::move(executor));
  }
  void close() override { inner_.close(); }

 private:
  net::Connection& inner_;
  std::vector<std::byte> first_;
};

std::vector<std::byte> copy(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

/// What to say to a connector that broke the rules before it was known to speak recua.
std::vector<std::byte> refusal(std::span<const std::byte> first_bytes, const Error& error) {
  if (!first_bytes.empty() && first_bytes.front() == kTlsFirstByte) {
    // Alert, TLS 1.2 record, fatal, protocol_version (RFC 8446, sections 5.1 and 6.2).
    constexpr std::array<unsigned char, 7> kAlert{0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x46};
    return copy(std::as_bytes(std::span(kAlert)));
  }
  if (describe_foreign_bytes(first_bytes) == "an HTTP request") {
    constexpr std::string_view kText = "This port speaks recua's own protocol, not HTTP.\n";
    return copy(
        as_bytes(fmt::format("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n"
                             "Content-Length: {}\r\nConnection: close\r\n\r\n{}",
                             kText.size(), kText)));
  }
  wire::Reject reject;
  reject.set_code(to_wire(error.code));
  reject.set_message(wire_text(error.message, kErrorTextBytesMax));
  reject.set_protocol_version(kProtocolVersion);
  reject.set_oldest_version(kOldestProtocolVersion);
  return encode_frame(FrameKind::kReject, reject, kHandshakeFrameBytesMax).value();
}

net::asio::awaitable<void> refuse(const net::Env& env, net::Connection& connection,
                                  std::vector<std::byte> bytes) {
  {
    const net::DeadlineGuard guard(env, connection, kRejectTimeout, "reader");
    const std::span<const std::byte> span(bytes);
    Result<void> written = co_await connection.write(span);
    // Bytes left unread would turn our close into a reset that overtakes the answer.
    std::vector<std::byte> rest(kHandshakeFrameBytesMax);
    for (int i = 0; i < 4 && written.ok(); ++i) {
      const Result<std::size_t> n = connection.try_read(rest);
      if (!n.ok() || *n == 0) break;
    }
  }
  connection.close();
}

}  // namespace

bool has_feature(std::span<const std::uint32_t> features, Feature feature) {
  const auto number = static_cast<std::uint32_t>(feature);
  return std::find(features.begin(), features.end(), number) != features.end();
}

bool secrets_equal(const Secret& a, const Secret& b) { return equal_in_constant_time(a, b); }

Secret make_secret(const net::Env& env) {
  Secret out;
  const std::array<std::uint64_t, 2> words{env.random(), env.random()};
  static_assert(sizeof(words) == sizeof(out));
  std::memcpy(out.data(), words.data(), out.size());
  return out;
}

Result<void> validate(const RingShape& ring) {
  if (ring.n_slots < 1 || ring.n_slots > kRingSlotsMax) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("n_slots is {}, must be 1 to {}", ring.n_slots, kRingSlotsMax)};
  }
  if (ring.slot_bytes < kTensorHeaderBytes || ring.slot_bytes > kRingSlotBytesMax) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("slot_bytes is {}, must be {} to {}", ring.slot_bytes,
                             kTensorHeaderBytes, kRingSlotBytesMax)};
  }
  return ok();
}

net::asio::awaitable<Result<PeerInfo>> client_handshake(const net::Env& env,
                                                        net::Connection& connection, PeerInfo self,
                                                        net::Duration timeout) {
  net::DeadlineGuard guard(env, connection, timeout, "Welcome from " + connection.peer());
  const wire::Hello hello = make_hello(self);
  Result<wire::Welcome> welcome = co_await exchange_hello(connection, hello);
  if (!welcome.ok()) {
    connection.close();
    co_return guard.explain(std::move(welcome).error());
  }
  Result<PeerInfo> peer = from_wire(*welcome, connection.peer());
  if (!peer.ok()) {
    connection.close();
    co_return std::move(peer).error();
  }
  peer->features = common(self.features, peer->features);
  co_return peer;
}

net::asio::awaitable<Result<ChannelHandshake>> channel_handshake(const net::Env& env,
                                                                 net::Connection& connection,
                                                                 PeerInfo self,
                                                                 ChannelRequest request,
                                                                 net::Duration timeout) {
  net::DeadlineGuard guard(env, connection, timeout, "Welcome from " + connection.peer());
  wire::Hello hello = make_hello(self);
  hello.set_role(wire::ROLE_CHANNEL);
  *hello.mutable_channel() = to_wire(request);
  Result<wire::Welcome> welcome = co_await exchange_hello(connection, hello);
  if (!welcome.ok()) {
    connection.close();
    co_return guard.explain(std::move(welcome).error());
  }
  ChannelHandshake out;
  Result<PeerInfo> peer = from_wire(*welcome, connection.peer());
  const bool sends = request.direction == Direction::kConnectorSends;
  Result<RingShape> ring =
      sends ? from_wire(welcome->ring(), connection.peer()) : Result<RingShape>(request.ring);
  if (!peer.ok() || !ring.ok()) {
    connection.close();
    co_return peer.ok() ? std::move(ring).error() : std::move(peer).error();
  }
  out.ring = *ring;
  out.peer = std::move(*peer);
  out.peer.features = common(self.features, out.peer.features);
  co_return out;
}

net::asio::awaitable<Result<ServerHandshake>> server_handshake(const net::Env& env,
                                                               net::Connection& connection,
                                                               PeerInfo self,
                                                               net::Duration timeout) {
  FirstByteRecorder recorder(connection);
  std::optional<Error> failure;
  {
    net::DeadlineGuard guard(env, connection, timeout, "Hello from " + connection.peer());
    Result<wire::Hello> hello = co_await read_hello(recorder);
    if (hello.ok()) {
      Result<ServerHandshake> out = check_hello(*hello, self, connection.peer());
      if (out.ok() && out->channel) co_return out;
      if (out.ok()) {
        const wire::Welcome welcome = make_welcome(self, out->peer);
        Result<void> written =
            co_await write_frame(connection, FrameKind::kWelcome, welcome, kHandshakeFrameBytesMax);
        if (written.ok()) co_return out;
        failure = guard.explain(std::move(written).error());
      } else {
        failure = std::move(out).error();
      }
    } else {
      failure = guard.explain(std::move(hello).error());
    }
  }
  const bool can_hear =
      failure->code == ErrorCode::kProtocol || failure->code == ErrorCode::kUnsupported;
  if (can_hear) {
    std::vector<std::byte> bytes = refusal(recorder.first_bytes(), *failure);
    co_await refuse(env, connection, std::move(bytes));
  }
  connection.close();
  co_return std::move(*failure);
}

net::asio::awaitable<Result<void>> accept_channel(const net::Env& env, net::Connection& connection,
                                                  PeerInfo self, ServerHandshake handshake,
                                                  Secret expected, RingShape ring,
                                                  net::Duration timeout) {
  RECUA_CHECK(handshake.channel.has_value());
  const ChannelRequest& request = *handshake.channel;
  if (!secrets_equal(request.secret, expected)) {
    Error error{ErrorCode::kInvalidArgument,
                fmt::format("{} showed a wrong secret for channel {} of session {:x}",
                            connection.peer(), request.number, request.id.session)};
    Error told = error;
    co_await reject(env, connection, std::move(told));
    co_return error;
  }
  wire::Welcome welcome = make_welcome(self, handshake.peer);
  if (request.direction == Direction::kConnectorSends) {
    RECUA_CO_RETURN_IF_ERROR(validate(ring));
    welcome.mutable_ring()->set_n_slots(ring.n_slots);
    welcome.mutable_ring()->set_slot_bytes(ring.slot_bytes);
  }
  net::DeadlineGuard guard(env, connection, timeout, "reader at " + connection.peer());
  Result<void> written =
      co_await write_frame(connection, FrameKind::kWelcome, welcome, kHandshakeFrameBytesMax);
  if (written.ok()) co_return ok();
  connection.close();
  co_return guard.explain(std::move(written).error());
}

net::asio::awaitable<void> reject(const net::Env& env, net::Connection& connection, Error error) {
  std::vector<std::byte> bytes = refusal({}, error);
  co_await refuse(env, connection, std::move(bytes));
}

}  // namespace recua::rpc
