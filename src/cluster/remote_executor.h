#pragma once
/// RemoteExecutor: an Executor whose slices run on workers. It writes micro-batches into the
/// channels of the first stage's ranks and takes results from the channel of the last; activations
/// never pass here.
///
/// Steps may overlap: the micro-batches of the next enter the pipeline while the last are under
/// way. Errors: what a stage said about a batch (kInvalidArgument), or kUnavailable when a worker
/// or a channel is lost; every later step then fails with the same error. Threads: the loop of
/// env.executor.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "model/executor.h"
#include "net/connection.h"
#include "rpc/channel.h"

namespace recua::cluster {

class RemoteExecutor final : public model::Executor {
 public:
  struct Parts {
    net::Env env;
    rpc::ChannelId id;
    model::ExecutorInfo info;
    std::uint32_t n_logit_rows = 1;
    // Outlives the channels, whose cards may write into it to the end: the ring.
    std::shared_ptr<void> keep;
    std::vector<std::unique_ptr<rpc::ChannelSender>> firsts;  // To each rank of the first stage.
    std::unique_ptr<rpc::ChannelReceiver> last;
  };

  explicit RemoteExecutor(Parts parts);
  ~RemoteExecutor() override;  // Fails what is under way with kCancelled.

  [[nodiscard]] const model::ExecutorInfo& info() const override;
  boost::asio::awaitable<Result<model::StepResult>> step(model::StepBatch batch) override;

  /// Something outside broke (a worker left): every step under way and to come fails with this.
  void fail(const Error& error);
  /// What fail() would be called through, for callers that may outlive the executor.
  [[nodiscard]] std::function<void(const Error&)> failer() const;

  /// Returns when it is decided what carries the messages. kTimeout; or what broke.
  boost::asio::awaitable<Result<void>> wait_until_settled(net::Duration timeout);

  /// All ends, for what they say of themselves.
  [[nodiscard]] std::size_t n_firsts() const;
  [[nodiscard]] const rpc::ChannelSender& first(std::size_t rank = 0) const;
  [[nodiscard]] const rpc::ChannelReceiver& last() const;
  [[nodiscard]] const rpc::ChannelCounters& sent() const { return first().counters(); }
  [[nodiscard]] const rpc::ChannelCounters& received() const { return last().counters(); }

 private:
  struct State;
  std::shared_ptr<State> state_;  // Shared with the coroutine that moves messages.
};

}  // namespace recua::cluster
