#include "net/verbs/verbs.h"

namespace recua::net::verbs {

std::string_view to_string(Status status) {
  switch (status) {
    case Status::kSuccess:
      return "success";
    case Status::kLocalLength:
      return "local length error: a message was longer than its receive, or than the device sends";
    case Status::kLocalQpOperation:
      return "local queue pair error: the device could not process a request, or its link is down";
    case Status::kLocalProtection:
      return "local protection error: a request named memory that is not registered";
    case Status::kFlushed:
      return "flushed: the connection had failed before";
    case Status::kMemoryWindowBind:
      return "memory window error";
    case Status::kBadResponse:
      return "bad response: the peer answered with a packet that makes no sense";
    case Status::kLocalAccess:
      return "local access error: the peer wrote where it may not";
    case Status::kRemoteInvalidRequest:
      return "remote invalid request: the peer's queue pair does not allow it";
    case Status::kRemoteAccess:
      return "remote access error: the peer's memory may not be written there";
    case Status::kRemoteOperation:
      return "remote operation error: the peer's device could not take it";
    case Status::kRetryExceeded:
      return "retry exceeded: the peer does not answer";
    case Status::kRnrRetryExceeded:
      return "receiver not ready: the peer posted no receive in time";
    case Status::kRemoteAbort:
      return "remote abort: the peer gave the request up";
    case Status::kFatal:
      return "fatal: the device failed";
    case Status::kOther:
      return "error without a name of its own";
  }
  return "unknown status";
}

std::string_view to_string(EventKind kind) {
  switch (kind) {
    case EventKind::kPortActive:
      return "port active";
    case EventKind::kPortError:
      return "port down";
    case EventKind::kGidChange:
      return "address change";
    case EventKind::kDeviceFatal:
      return "device failed";
    case EventKind::kQueuePairFatal:
      return "queue pair failed";
    case EventKind::kAccessViolation:
      return "access violation";
    case EventKind::kOther:
      return "other event";
  }
  return "unknown event";
}

}  // namespace recua::net::verbs
