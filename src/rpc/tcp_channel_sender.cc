// Messages that the stream has not taken yet wait in a ring of as many entries as there are
// credits; each keeps its encoded header, the rest stays in the caller's memory.
#include <array>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "rpc/tcp_channel.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {
namespace {

constexpr std::size_t kMessagesPerCall = 8;  // Gathered into one write.

class TcpChannelSender : public ChannelSender {
 public:
  TcpChannelSender(std::unique_ptr<net::Connection> connection, RingShape ring)
      : connection_(std::move(connection)), ring_(ring), waiting_(ring.n_slots) {}

  [[nodiscard]] const std::string& peer() const override { return connection_->peer(); }
  [[nodiscard]] const RingShape& ring() const override { return ring_; }
  [[nodiscard]] std::string transport() const override { return "tcp"; }
  [[nodiscard]] bool settled() const override { return true; }
  [[nodiscard]] std::uint32_t credits() const override {
    return ring_.n_slots - static_cast<std::uint32_t>(n_sent_ - n_released_);
  }
  [[nodiscard]] std::uint64_t n_sent() const override { return n_sent_; }
  [[nodiscard]] std::uint64_t n_completed() const override { return n_completed_; }
  [[nodiscard]] const ChannelCounters& counters() const override { return counters_; }

  Result<bool> try_send(const Outgoing& message) override {
    if (failure_) return *failure_;
    const TensorHeader& header = message.header;
    const std::uint64_t bytes = message_bytes(header);
    RECUA_CHECK(message.rows.size() == std::uint64_t{header.n_rows} * header.row_bytes);
    RECUA_CHECK(message.descriptor.size() == header.descriptor_bytes);
    if (bytes > ring_.slot_bytes) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("a message of {} bytes ({} rows of {}, descriptor of {}) does not fit "
                      "into a slot of {} at {}",
                      bytes, header.n_rows, header.row_bytes, header.descriptor_bytes,
                      ring_.slot_bytes, peer())};
    }
    if (credits() == 0) return false;

    TensorHeader numbered = header;
    numbered.sequence = n_sent_;
    Waiting& entry = waiting_[n_sent_ % ring_.n_slots];
    entry.header = encode(numbered);
    entry.rows = message.rows;
    entry.descriptor = message.descriptor;
    ++n_sent_;
    ++counters_.messages;
    counters_.bytes += bytes;
    RECUA_RETURN_IF_ERROR(flush());
    return true;
  }

  Result<bool> poll() override {
    if (failure_) return *failure_;
    RECUA_ASSIGN_OR_RETURN(const bool wrote, flush());
    RECUA_ASSIGN_OR_RETURN(const bool credited, read_credits());
    return wrote || credited;
  }

  void arm(net::ReadyCallback ready) override {
    ++counters_.sleeps;
    if (n_completed_ < n_sent_) connection_->arm_write(ready);
    connection_->arm_read(std::move(ready));
  }

 private:
  /// A message that is not completely written.
  struct Waiting {
    std::array<std::byte, kTensorHeaderBytes> header;
    std::span<const std::byte> rows;
    std::span<const std::byte> descriptor;

    [[nodiscard]] std::size_t size() const {
      return header.size() + rows.size() + descriptor.size();
    }
  };

  Error fail(Error error) {
    failure_ = error;
    connection_->close();
    return error;
  }

  /// Writes what waits, as far as the stream takes it.
  Result<bool> flush() {
    bool moved = false;
    while (n_completed_ < n_sent_) {
      std::array<std::span<const std::byte>, 3 * kMessagesPerCall> parts;
      std::size_t n_parts = 0;
      std::size_t skip = n_written_;  // Only the first message can be half written.
      std::size_t n_bytes = 0;
      for (std::uint64_t i = n_completed_; i < n_sent_ && n_parts < parts.size(); ++i) {
        const Waiting& entry = waiting_[i % ring_.n_slots];
        for (const std::span<const std::byte> part :
             {std::span<const std::byte>(entry.header), entry.rows, entry.descriptor}) {
          const std::size_t skipped = std::min(skip, part.size());
          skip -= skipped;
          parts[n_parts++] = part.subspan(skipped);
          n_bytes += part.size() - skipped;
        }
      }
      ++counters_.system_calls;
      Result<std::size_t> n = connection_->try_write(std::span(parts).first(n_parts));
      if (!n.ok()) return fail(std::move(n).error());
      moved = moved || *n > 0;
      n_written_ += *n;
      while (n_completed_ < n_sent_ &&
             n_written_ >= waiting_[n_completed_ % ring_.n_slots].size()) {
        n_written_ -= waiting_[n_completed_ % ring_.n_slots].size();
        ++n_completed_;
      }
      if (*n < n_bytes) break;
    }
    return moved;
  }

  Result<bool> read_credits() {
    bool moved = false;
    while (true) {
      std::array<std::byte, 16 * kCreditBytes> bytes;  // Starts with the half credit of last time.
      std::copy_n(partial_.begin(), n_partial_, bytes.begin());
      ++counters_.system_calls;
      Result<std::size_t> n = connection_->try_read(std::span(bytes).subspan(n_partial_));
      if (!n.ok()) return fail(std::move(n).error());
      const std::size_t n_bytes = n_partial_ + *n;
      std::size_t position = 0;
      for (; position + kCreditBytes <= n_bytes; position += kCreditBytes) {
        RECUA_RETURN_IF_ERROR(
            take_credit(std::span(bytes).subspan(position).first<kCreditBytes>()));
        moved = true;
      }
      n_partial_ = n_bytes - position;
      std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(position), n_partial_,
                  partial_.begin());
      if (n_bytes < bytes.size()) return moved;
    }
  }

  Result<void> take_credit(std::span<const std::byte, kCreditBytes> bytes) {
    Result<std::uint64_t> n_released = decode_credit(bytes);
    if (!n_released.ok()) return fail(std::move(n_released).error().within(peer()));
    // Only what has left completely can have come back.
    if (*n_released < n_released_ || *n_released > n_completed_) {
      return fail(
          Error{ErrorCode::kProtocol,
                fmt::format("{} says that it released {} slots; it was sent {} messages and "
                            "had released {}",
                            peer(), *n_released, n_completed_, n_released_)});
    }
    n_released_ = *n_released;
    return ok();
  }

  std::unique_ptr<net::Connection> connection_;
  RingShape ring_;
  std::vector<Waiting> waiting_;  // Message i at i % n_slots.
  std::uint64_t n_sent_ = 0;
  std::uint64_t n_completed_ = 0;
  std::uint64_t n_released_ = 0;
  std::size_t n_written_ = 0;  // Of message n_completed_.
  std::array<std::byte, kCreditBytes> partial_{};
  std::size_t n_partial_ = 0;
  ChannelCounters counters_;
  std::optional<Error> failure_;
};

}  // namespace

std::unique_ptr<ChannelSender> make_tcp_sender(std::unique_ptr<net::Connection> connection,
                                               RingShape ring) {
  RECUA_CHECK(ring.n_slots > 0);
  return std::make_unique<TcpChannelSender>(std::move(connection), ring);
}

}  // namespace recua::rpc
