#pragma once
/// The measuring end of an echo session (echo_session.h): a control connection to a worker, and
/// links over which messages go there and come back.
///
/// It polls as a coordinator does (poll_loop.h), on env.executor's loop, and gives that loop its
/// turn now and then, so that heartbeats go on. Errors name the worker. Threads: the loop's.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/ring_buffer.h"
#include "net/connection.h"
#include "net/event.h"
#include "rpc/control.h"
#include "rpc/handshake.h"
#include "rpc/link.h"
#include "rpc/recua.pb.h"
#include "sys/aligned_buffer.h"

namespace recua::cluster {

/// The control connection to a worker that is measured.
class EchoPeer {
 public:
  /// self: what else this end says of itself. kUnavailable, kTimeout; kUnsupported: the worker is
  /// too old.
  static boost::asio::awaitable<Result<std::shared_ptr<EchoPeer>>> connect(
      net::Env env, net::Endpoint worker, rpc::PeerInfo self, net::Duration connect_timeout,
      rpc::ControlOptions control);

  [[nodiscard]] const rpc::PeerInfo& info() const { return info_; }
  [[nodiscard]] std::string name() const { return "worker " + endpoint_.to_string(); }
  /// Why the worker was lost, if it was.
  [[nodiscard]] std::optional<Error> failure() const;

 private:
  friend class EchoLink;
  EchoPeer(net::Env env, net::Endpoint endpoint, rpc::PeerInfo self, net::Duration connect_timeout)
      : env_(std::move(env)),
        endpoint_(std::move(endpoint)),
        self_(std::move(self)),
        connect_timeout_(connect_timeout),
        wake_(std::make_shared<net::Event>(env_.executor)) {}

  boost::asio::awaitable<Result<wire::ControlMessage>> call(wire::ControlMessage request);
  boost::asio::awaitable<Result<std::unique_ptr<net::Connection>>> open_channel(
      rpc::ChannelRequest request, rpc::ChannelHandshake& agreed);
  void take_notice(const wire::ControlMessage& notice);

  net::Env env_;
  net::Endpoint endpoint_;
  rpc::PeerInfo self_;
  net::Duration connect_timeout_;
  rpc::PeerInfo info_;
  std::shared_ptr<net::Event> wake_;  // Of whoever polls a link.
  std::optional<Error> failure_;
  std::uint64_t session_ = 0;             // The echo session that is open,
  std::optional<Error> session_failure_;  // and how it failed.
  std::unique_ptr<rpc::ControlConnection> control_;
};

/// One echo session with a channel in each direction. One at a time per peer.
class EchoLink {
 public:
  struct Options {
    rpc::LinkPolicy policy;                   // What this end's links may use.
    std::vector<wire::Transport> transports;  // What the worker's may.
    std::uint32_t rows_bytes_max = 0;         // Of one message.
    std::uint32_t stream_bytes = 0;           // Of one message of stream().
    std::uint32_t window = 8;                 // Messages under way.
  };
  /// Opens the session and its channels. They agree on a transport in settle().
  static boost::asio::awaitable<Result<std::unique_ptr<EchoLink>>> open(
      std::shared_ptr<EchoPeer> peer, Options options);
  /// Once, at the end, whatever happened before.
  boost::asio::awaitable<void> close();

  /// Polls until both directions run on something, with one message there and back.
  boost::asio::awaitable<Result<void>> settle();
  /// What carries messages there and back, for people (rpc::ChannelSender::transport()).
  [[nodiscard]] std::string transport_there() const { return out_->transport(); }
  [[nodiscard]] std::string transport_back() const { return in_->transport(); }
  /// What this end's channels have said of that so far, line by line.
  [[nodiscard]] const std::vector<std::string>& reports() const { return *reports_; }

  /// Times of whole round trips of messages of so many bytes, one after the other, until time is
  /// up or there are enough; a few at least.
  boost::asio::awaitable<Result<std::vector<net::Duration>>> round_trips(std::uint32_t bytes,
                                                                         net::Duration duration,
                                                                         std::uint64_t n_max);
  struct Stream {
    std::uint64_t n_messages = 0;
    net::Duration took{};  // From the first message's start to the last one's answer.
  };
  /// As many messages as go through, a window of them under way, each answered without rows.
  boost::asio::awaitable<Result<Stream>> stream(net::Duration duration, std::uint64_t n_max);

 private:
  EchoLink(std::shared_ptr<EchoPeer> peer, Options options)
      : peer_(std::move(peer)), options_(std::move(options)) {}

  boost::asio::awaitable<Result<void>> open_channels();
  boost::asio::awaitable<Result<void>> poll_while(std::function<Result<bool>()> poll,
                                                  std::function<bool()> finished,
                                                  net::Duration duration, std::string what);
  Result<bool> send(std::uint32_t micro_batch, std::span<const std::byte> rows);
  /// Whether the answer to a message came; its slot is given back.
  Result<bool> take_answer(std::uint64_t step, std::span<const std::byte> rows, bool compare);
  [[nodiscard]] net::TimePoint now() const { return peer_->env_.clock->now(); }
  [[nodiscard]] std::span<const std::byte> rows() const { return rows_.bytes(); }

  std::shared_ptr<EchoPeer> peer_;
  Options options_;
  rpc::ChannelId id_;
  std::unique_ptr<RingBuffer> ring_;
  sys::AlignedBuffer rows_;  // What is sent.
  std::unique_ptr<rpc::ChannelSender> out_;
  std::unique_ptr<rpc::ChannelReceiver> in_;
  std::uint64_t n_steps_ = 0;
  std::shared_ptr<std::vector<std::string>> reports_ = std::make_shared<std::vector<std::string>>();
};

}  // namespace recua::cluster
