#pragma once
/// LinkStream: the connection of links, as a sequence of items each way: messages, credits and link
/// records. Two links of opposite directions between the same two processes may share one: whose an
/// item is follows from its kind, so nothing more is sent, and a message carries the
/// acknowledgement of the one before it, which else is a packet of its own.
///
/// What comes is read by whichever link asks first; each gets what is its own, a message goes to
/// its slot. An error ends both links. docs/protocol.md, "Shared connections". Threads: one at a
/// time, a stream and its links together.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/result.h"
#include "net/connection.h"
#include "net/wait_set.h"
#include "rpc/channel.h"
#include "rpc/link_record.h"
#include "rpc/stream_reader.h"
#include "rpc/stream_writer.h"

namespace recua::rpc {

/// What a link takes from its stream; errors name the peer.
class StreamUser {
 public:
  StreamUser() = default;
  StreamUser(const StreamUser&) = delete;
  StreamUser& operator=(const StreamUser&) = delete;
  virtual Result<void> take_record(RecordKind kind, std::span<const std::byte> payload) = 0;

 protected:
  ~StreamUser() = default;
};

/// The sending end of a link: answers and confirmed fences, and credits.
class StreamSender : public StreamUser {
 public:
  virtual Result<void> take_credit(std::uint64_t n_released) = 0;

 protected:
  ~StreamSender() = default;
};

/// The receiving end of a link: offers and what follows them, and messages.
class StreamReceiver : public StreamUser {
 public:
  /// Where the next message will probably lie, as long as it probably is; empty: nobody knows.
  virtual std::span<std::byte> guess() = 0;
  /// Where the body of this message goes.
  virtual Result<std::span<std::byte>> begin_message(const TensorHeader& header) = 0;
  virtual Result<void> end_message(const TensorHeader& header) = 0;
  /// Of the messages, whoever reads them.
  virtual ChannelCounters& message_counters() = 0;

 protected:
  ~StreamReceiver() = default;
};

class LinkStream {
 public:
  /// peer: what messages call the other end.
  LinkStream(std::unique_ptr<net::Connection> connection, std::string peer)
      : connection_(std::move(connection)), peer_(std::move(peer)) {}

  /// One of each at most; each leaves before it ends, after which nothing is read any more.
  void join(StreamSender& sender) { sender_ = &sender; }
  void join(StreamReceiver& receiver) { receiver_ = &receiver; }
  void leave(const StreamUser& user);

  [[nodiscard]] const std::string& peer() const { return peer_; }
  [[nodiscard]] std::string local_address() const { return connection_->local_address(); }

  /// Reads until a message is complete or nothing is left. True: something came.
  Result<bool> read(ChannelCounters& counters);
  /// Whether an item has begun and is not complete.
  [[nodiscard]] bool in_item() const { return reader_.in_item(); }

  /// What is to be written, and whether there is something.
  [[nodiscard]] StreamWriter& writer() { return writer_; }
  [[nodiscard]] bool writes() const { return !writer_.empty(); }
  /// Whether write() would neither write nor fail.
  [[nodiscard]] bool is_idle() const { return writer_.empty() && !failure_; }
  /// Writes as far as the connection takes it. True when bytes left.
  Result<bool> write(ChannelCounters& counters);

  /// Calls `ready` when read() or write() may do something: the one that was given last, whichever
  /// link gave it.
  void arm(const net::ReadyCallback& ready);
  /// The same for who waits in a set; false as a channel's.
  bool arm_in(const net::WaitSet& set);
  /// For a receiver whose messages nobody takes for now. A sender on the same connection stays, and
  /// reads what comes to where it belongs: at most as many messages as the ring has slots.
  void leave_set();
  /// Whether one of those waits has found something to read; takes that note away.
  bool take_readable();

  /// Ends the connection: all that is asked of this stream from now on fails with `why`.
  void close(const Error& why);

 private:
  Result<void> take(StreamReader::Item item);
  Error not_ours(const std::string& what) const;

  std::unique_ptr<net::Connection> connection_;
  std::string peer_;
  StreamSender* sender_ = nullptr;
  StreamReceiver* receiver_ = nullptr;
  StreamReader reader_;
  StreamWriter writer_;
  net::NotedCallback on_readable_;
  std::optional<net::WaitHandle> readable_;  // Of the connection; made by the first arm_in().
  std::optional<Error> failure_;
};

}  // namespace recua::rpc
