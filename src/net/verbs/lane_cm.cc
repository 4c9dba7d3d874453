// Connecting a lane through rdma_cm: poll() carries it on, step by step.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/lane_state.h"

namespace recua::net::verbs {
namespace {

/// For each of the two steps of finding the way; the whole has the caller's deadline.
constexpr Duration kResolveTimeout = std::chrono::seconds(5);

}  // namespace

Result<Endpoint> Lane::listen(const LaneAddress& remote, const CmToken& token) {
  State& state = *state_;
  RECUA_RETURN_IF_ERROR(state.set_remote(remote));
  auto listener = cm_listen(to_string(state.local.port.gid));
  if (!listener.ok()) return std::move(listener).error().within(state.name);
  state.cm_listener = std::move(*listener);
  state.cm_token = token;
  return state.cm_listener->endpoint();
}

Result<void> Lane::connect_by_cm(const LaneAddress& remote, const Endpoint& listener,
                                 const CmToken& token) {
  State& state = *state_;
  RECUA_RETURN_IF_ERROR(state.set_remote(remote));
  auto begun = cm_connect(to_string(state.local.port.gid), listener, kResolveTimeout);
  if (!begun.ok()) return std::move(begun).error().within(state.name);
  state.cm = std::move(*begun);
  state.cm_token = token;
  return ok();
}

bool Lane::is_connected() const { return state_->is_connected; }

void Lane::State::advance_cm() {
  const CmParameters parameters{.mtu_bytes = mtu_bytes};
  if (cm_listener != nullptr && cm == nullptr) {
    auto request = cm_listener->poll();
    if (!request.ok()) {
      fail(ErrorCode::kUnavailable, request.error().message);
      return;
    }
    // Whoever does not know the token is turned away; the peer may still come.
    if (!request->has_value() || (*request)->token != cm_token) return;
    cm = std::move((*request)->connection);
    if (auto accepted = cm->accept(*pair, parameters); !accepted.ok()) {
      fail(ErrorCode::kUnavailable, accepted.error().message);
    }
  }
  if (cm == nullptr || failure) return;
  switch (cm->poll()) {
    case CmState::kResolved:
      if (auto asked = cm->connect(*pair, cm_token, parameters); !asked.ok()) {
        fail(ErrorCode::kUnavailable, asked.error().message);
      }
      break;
    case CmState::kConnected:
      is_connected = true;
      cm_listener.reset();
      break;
    case CmState::kEnded:
      fail(ErrorCode::kUnavailable, cm->failure() ? cm->failure()->message : "rdma_cm ended it");
      break;
    case CmState::kResolving:
    case CmState::kRequested:
    case CmState::kConnecting:
      break;
  }
}

}  // namespace recua::net::verbs
