#pragma once
/// A worker's part in training runs, as the worker sees it: sessions beside those of slices, which
/// somebody else makes (train/train_session.h). docs/protocol.md, "Training".

#include <cstdint>
#include <functional>
#include <memory>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/channel_host.h"
#include "cluster/chunk_requests.h"
#include "cluster/session.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

/// Life: open() -> pieces of the state by add_state() -> channels with the other ranks -> start()
/// -> steps -> close(). Threads: the worker's control loop; training itself has its own.
class TrainingSession : public ChannelHost {
 public:
  /// Allocates. kResourceExhausted: says what is needed and what is free.
  virtual boost::asio::awaitable<Result<void>> open() = 0;
  virtual Result<void> add_state(const wire::TrainState& piece) = 0;
  virtual Result<void> start() = 0;
  /// A step that breaks the rules ends the session, which says so.
  virtual void take_step(const wire::TrainStep& step) = 0;
  /// Ends whatever runs, after its pass. Idempotent.
  virtual void close() = 0;
  /// Returns when what close() ended has ended, or time is up.
  virtual boost::asio::awaitable<void> wait_until_ended(net::Duration timeout) = 0;
};

/// What a session needs of its worker, besides its SessionEnv. Called on the control loop.
struct TrainingEvents {
  CallCoordinator call;
  std::function<void(const Error&)> failed;  // The session ended by itself.
  LinkReported reported;
};

/// Checks the message and makes a session that has not allocated anything yet. kProtocol,
/// kUnsupported, kCorrupt, kResourceExhausted: names the field.
using TrainingFactory = std::function<Result<std::shared_ptr<TrainingSession>>(
    const SessionEnv& env, const wire::OpenTraining& message, TrainingEvents events)>;

}  // namespace recua::cluster
