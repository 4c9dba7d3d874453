#include "net/verbs/verbs.h"

namespace recua::net::verbs {

std::string_view to_string(Status status) {
  switch (status) {
    case Status::kSuccess:
      return "success";
    case Status::kLocalLength:
      return "local length error: a message is longer than its buffer or than the port takes";
    case Status::kLocalQpOperation:
      return "local queue pair error: this side's port or queue pair cannot work, is its link up?";
    case Status::kLocalProtection:
      return "local protection error: a buffer of this side is not registered for the queue pair";
    case Status::kFlushed:
      return "flushed: the queue pair had failed or was closed before";
    case Status::kMemoryWindowBind:
      return "memory window could not be bound";
    case Status::kBadResponse:
      return "bad response: the peer's card answered with what it may not";
    case Status::kLocalAccess:
      return "local access error: what arrived may not be written to this side's buffer";
    case Status::kRemoteInvalidRequest:
      return "remote invalid request: the peer's queue pair does not take such requests";
    case Status::kRemoteAccess:
      return "remote access error: the peer does not let us write there";
    case Status::kRemoteOperation:
      return "remote operation error: the peer's queue pair failed at this request";
    case Status::kRetryExceeded:
      return "retry exceeded: the peer does not answer";
    case Status::kRnrRetryExceeded:
      return "receiver-not-ready retry exceeded: the peer has posted no receive";
    case Status::kRemoteAbort:
      return "remote abort: the peer gave up this request";
    case Status::kFatal:
      return "fatal: the device of this side failed";
    case Status::kOther:
      return "another error, which only the device's vendor can explain";
  }
  return "unknown status";
}

std::string_view to_string(EventKind kind) {
  switch (kind) {
    case EventKind::kPortActive:
      return "port is active";
    case EventKind::kPortError:
      return "port went down";
    case EventKind::kGidChange:
      return "addresses of the port changed";
    case EventKind::kDeviceFatal:
      return "device failed or was removed";
    case EventKind::kQueuePairFatal:
      return "queue pair failed";
    case EventKind::kAccessViolation:
      return "the peer wrote where it may not";
    case EventKind::kOther:
      return "another event";
  }
  return "unknown event";
}

}  // namespace recua::net::verbs
