#include "net/recording_connection.h"

#include <algorithm>

namespace recua::net {
namespace {

void append(std::vector<std::byte>& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

class RecordingConnection : public Connection {
 public:
  RecordingConnection(std::unique_ptr<Connection> inner, std::shared_ptr<Transcript> transcript)
      : inner_(std::move(inner)), transcript_(std::move(transcript)) {}

  [[nodiscard]] const std::string& peer() const override { return inner_->peer(); }
  [[nodiscard]] std::string local_address() const override { return inner_->local_address(); }

  asio::awaitable<Result<void>> read(std::span<std::byte> out) override {
    const std::shared_ptr<Transcript> transcript = transcript_;
    Result<void> result = co_await inner_->read(out);
    if (result.ok()) append(transcript->received, out);
    co_return result;
  }
  asio::awaitable<Result<void>> write(std::span<const std::byte> bytes) override {
    append(transcript_->sent, bytes);  // Before: whatever the peer does next comes after it.
    return inner_->write(bytes);
  }

  Result<std::size_t> try_read(std::span<std::byte> out) override {
    RECUA_ASSIGN_OR_RETURN(const std::size_t n, inner_->try_read(out));
    append(transcript_->received, out.first(n));
    return n;
  }
  Result<std::size_t> try_write(std::span<const std::span<const std::byte>> parts) override {
    RECUA_ASSIGN_OR_RETURN(const std::size_t n, inner_->try_write(parts));
    std::size_t left = n;
    for (const std::span<const std::byte> part : parts) {
      const std::size_t taken = std::min(left, part.size());
      append(transcript_->sent, part.first(taken));
      left -= taken;
    }
    return n;
  }

  void arm_read(ReadyCallback ready) override { inner_->arm_read(std::move(ready)); }
  void arm_write(ReadyCallback ready) override { inner_->arm_write(std::move(ready)); }

  Result<std::unique_ptr<Connection>> move_to(asio::any_io_executor executor) override {
    RECUA_ASSIGN_OR_RETURN(std::unique_ptr<Connection> moved, inner_->move_to(std::move(executor)));
    return record(std::move(moved), transcript_);
  }
  void close() override { inner_->close(); }

 private:
  std::unique_ptr<Connection> inner_;
  std::shared_ptr<Transcript> transcript_;
};

}  // namespace

std::unique_ptr<Connection> record(std::unique_ptr<Connection> inner,
                                   std::shared_ptr<Transcript> transcript) {
  return std::make_unique<RecordingConnection>(std::move(inner), std::move(transcript));
}

}  // namespace recua::net
