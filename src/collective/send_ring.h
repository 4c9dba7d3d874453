#pragma once
/// Registered memory that collective calls send from: a ring of buffers for copies of what is sent,
/// and room for the caller's own vectors.
///
/// A card reads a message's rows some time after it was sent, and again after a failure, while the
/// caller's vector is overwritten with the sum at once. So small vectors are copied to a buffer of
/// the ring, which is used again when every message from it is complete. Vectors in caller() go
/// without a copy, and the call waits for their completion.
///
/// Threads: one at a time. Memory: allocated once; outlives the channels that it is registered
/// with (LinkSender's `sources`).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "rpc/channel.h"
#include "sys/aligned_buffer.h"

namespace recua::collective {

class SendRing {
 public:
  /// ring: of the group's channels; each buffer holds what one slot does, and there are two for
  /// each slot or rank, so that calls rarely wait for each other. kResourceExhausted.
  static Result<SendRing> create(const rpc::RingShape& ring, std::uint32_t n_ranks,
                                 std::size_t caller_bytes);

  /// All of it, for `sources`.
  [[nodiscard]] std::span<std::byte> memory() const { return memory_.bytes(); }
  /// The caller's part, 64-byte aligned.
  [[nodiscard]] std::span<std::byte> caller() const {
    return memory_.bytes().subspan(n_buffers() * buffer_bytes_);
  }
  [[nodiscard]] std::size_t n_buffers() const { return users_.size(); }

 private:
  friend class Exchange;

  [[nodiscard]] std::span<std::byte> buffer(std::size_t index) const {
    return memory_.bytes().subspan(index * buffer_bytes_, buffer_bytes_);
  }
  /// For what all peers get: the buffers in turn.
  [[nodiscard]] std::size_t next() const { return next_; }
  [[nodiscard]] std::size_t after(std::size_t index, std::size_t n) const {
    return (index + n) % n_buffers();
  }
  void advance() { next_ = after(next_, 1); }
  /// For what only one peer gets: it has buffers of its own, lest those who take nothing hold up
  /// the others.
  [[nodiscard]] std::size_t of_peer(std::size_t peer, std::size_t message) const {
    const std::size_t n_each = n_buffers() / users_.front().until.size();
    return peer * n_each + message % n_each;
  }

  /// Takes a buffer, to be sent from n_sends times; false when it is still in use. senders: of all
  /// peers, null for the own rank.
  bool take(std::size_t index, std::size_t n_sends, std::span<rpc::ChannelSender* const> senders);
  /// One of those was handed over to a peer's sender.
  void sent(std::size_t index, std::size_t peer, const rpc::ChannelSender& sender);

  /// Who still needs a buffer.
  struct Users {
    std::size_t n_waiting = 0;         // Sends that have not begun.
    std::vector<std::uint64_t> until;  // By peer: free once its n_completed() is this.
  };

  sys::AlignedBuffer memory_;
  std::size_t buffer_bytes_ = 0;
  std::vector<Users> users_;
  std::size_t next_ = 0;
};

}  // namespace recua::collective
