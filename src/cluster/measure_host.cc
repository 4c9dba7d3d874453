#include "cluster/measure_host.h"

#include <exception>

#include "cluster/measure_wire.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

/// A measurement on the Offload; what it throws becomes an error.
template <class T>
asio::awaitable<Result<T>> measured(Offload& offload, std::function<Result<T>()> measure) {
  Result<T> out = Error{ErrorCode::kResourceExhausted, "measuring ran out of memory or threads"};
  const std::function<void()> work = [&] { out = measure(); };
  try {
    co_await offload.run(work);
  } catch (const std::exception&) {
    co_return out;
  }
  co_return out;
}

}  // namespace

Result<void> MeasureHost::check_free() const {
  if (!is_there()) return Error{ErrorCode::kUnsupported, "this worker measures nothing"};
  if (at_work_()) {
    return Error{ErrorCode::kUnavailable, "it is at work, and would measure what that leaves"};
  }
  if (busy_) return Error{ErrorCode::kUnavailable, "it measures already, for somebody else"};
  return ok();
}

asio::awaitable<Result<wire::ControlMessage>> MeasureHost::speed(
    const wire::MeasureSpeed& message) {
  RECUA_CO_ASSIGN_OR_RETURN(const SpeedRequest request, from_wire(message));
  RECUA_CO_RETURN_IF_ERROR(check_free());
  busy_ = true;
  const std::function<Result<MachineSpeed>()> measure = [&] { return measuring_.speed(request); };
  const Result<MachineSpeed> speed = co_await measured(*offload_, measure);
  busy_ = false;
  if (!speed.ok()) co_return Error(speed.error());
  wire::ControlMessage reply;
  to_wire(*speed, *reply.mutable_speed_measured());
  co_return reply;
}

asio::awaitable<Result<wire::ControlMessage>> MeasureHost::link(const wire::MeasureLink& message) {
  RECUA_CO_ASSIGN_OR_RETURN(const LinkRequest request, from_wire(message));
  RECUA_CO_RETURN_IF_ERROR(check_free());
  busy_ = true;
  const std::function<Result<LinkSpec>()> measure = [&] {
    return measuring_.link(request.peer, request.transports);
  };
  const Result<LinkSpec> link = co_await measured(*offload_, measure);
  busy_ = false;
  if (!link.ok()) co_return Error(link.error());
  wire::ControlMessage reply;
  to_wire(*link, *reply.mutable_link_measured());
  co_return reply;
}

}  // namespace recua::cluster
