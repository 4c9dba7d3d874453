#include "cluster/measure_host.h"

#include <exception>

#include "cluster/measure_wire.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

}  // namespace

Result<void> MeasureHost::check_free() const {
  if (!is_there()) return Error{ErrorCode::kUnsupported, "this worker measures nothing"};
  if (at_work_()) {
    return Error{ErrorCode::kUnavailable, "it is at work, and would measure what that leaves"};
  }
  if (busy_) return Error{ErrorCode::kUnavailable, "it measures already, for somebody else"};
  return ok();
}

template <class T>
asio::awaitable<Result<T>> MeasureHost::measure(std::function<Result<T>()> what) {
  RECUA_CO_RETURN_IF_ERROR(check_free());
  const Error thrown{ErrorCode::kResourceExhausted, "measuring ran out of memory or threads"};
  Result<T> out = thrown;
  const std::function<void()> work = [&] { out = what(); };
  busy_ = true;
  try {
    co_await offload_->run(work);
  } catch (const std::exception&) {
    out = thrown;
  }
  busy_ = false;
  co_return out;
}

asio::awaitable<Result<wire::ControlMessage>> MeasureHost::speed(
    const wire::MeasureSpeed& message) {
  RECUA_CO_ASSIGN_OR_RETURN(const SpeedRequest request, from_wire(message));
  const std::function<Result<MachineSpeed>()> what = [&] { return measuring_.speed(request); };
  RECUA_CO_ASSIGN_OR_RETURN(const MachineSpeed speed, co_await measure(what));
  wire::ControlMessage reply;
  to_wire(speed, *reply.mutable_speed_measured());
  co_return reply;
}

asio::awaitable<Result<wire::ControlMessage>> MeasureHost::link(const wire::MeasureLink& message) {
  RECUA_CO_ASSIGN_OR_RETURN(const LinkRequest request, from_wire(message));
  const std::function<Result<LinkSpec>()> what = [&] {
    return measuring_.link(request.peer, request.transports);
  };
  RECUA_CO_ASSIGN_OR_RETURN(const LinkSpec link, co_await measure(what));
  wire::ControlMessage reply;
  to_wire(link, *reply.mutable_link_measured());
  co_return reply;
}

}  // namespace recua::cluster
