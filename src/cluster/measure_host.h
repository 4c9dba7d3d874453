#pragma once
/// MeasureHost: a worker's answers to whoever plans with it (measuring.h). It measures only while
/// the worker is not at work, since neither would gain, and one thing at a time.
/// Threads: the worker's control loop; the measurements themselves run on the Offload.

#include <functional>
#include <utility>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/measuring.h"
#include "cluster/offload.h"
#include "rpc/recua.pb.h"

namespace recua::cluster {

class MeasureHost {
 public:
  /// at_work: whether a session is open. offload outlives this, and this the coroutines.
  MeasureHost(Offload& offload, Measuring measuring, std::function<bool()> at_work)
      : offload_(&offload), measuring_(std::move(measuring)), at_work_(std::move(at_work)) {}

  /// Whether it measures at all.
  [[nodiscard]] bool is_there() const { return measuring_.speed && measuring_.link; }

  /// The replies. kProtocol names a field; kUnsupported: this worker does not measure.
  /// kUnavailable: it is at work, or measures already.
  boost::asio::awaitable<Result<wire::ControlMessage>> speed(const wire::MeasureSpeed& message);
  boost::asio::awaitable<Result<wire::ControlMessage>> link(const wire::MeasureLink& message);

 private:
  [[nodiscard]] Result<void> check_free() const;
  /// A measurement on the Offload, if this is its time; what it throws becomes an error.
  template <class T>
  boost::asio::awaitable<Result<T>> measure(std::function<Result<T>()> what);

  Offload* offload_;
  Measuring measuring_;
  std::function<bool()> at_work_;
  bool busy_ = false;
};

}  // namespace recua::cluster
