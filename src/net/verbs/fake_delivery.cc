// One request at a time, from the sender's checks over the way to the receiver's, in the order in
// which cards make them (InfiniBand spec 9.7.4.1, 9.9, 10.8): what fails first decides the status.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "net/verbs/fake_state.h"

namespace recua::net::verbs {
namespace {

void complete(FakePairState& pair, const Completion& completion, std::uint64_t slot,
              bool is_receive) {
  FakeQueueState& queue = *pair.queue;
  if (queue.entries.full()) {
    queue.overrun = true;
  } else {
    queue.entries.push(
        {.completion = completion, .pair = &pair, .slot = slot, .is_receive = is_receive});
  }
  queue.wakeup.fire();
}

/// Gives back what the error state ends.
bool flushes(const FakePairState& pair) { return pair.device().limits.flushes; }

void complete_receive(FakePairState& pair, const ReceiveRequest& receive, Completion completion) {
  completion.wr_id = receive.wr_id;
  complete(pair, completion, 0, true);
}

/// Whether the range [data, data + bytes) is inside of the region.
bool covers(const FakeRegionState& region, std::uint64_t address, std::uint64_t bytes) {
  const auto begin = reinterpret_cast<std::uint64_t>(region.memory.data());
  return address >= begin && bytes <= region.memory.size() &&
         address - begin <= region.memory.size() - bytes;
}

bool may_use(const FabricState& fabric, const FakePairState& pair, const Segment& segment) {
  const auto found = fabric.by_lkey.find(segment.lkey);
  return found != fabric.by_lkey.end() && found->second->domain == pair.domain &&
         covers(*found->second, reinterpret_cast<std::uint64_t>(segment.data), segment.bytes);
}

std::uint64_t total_bytes(const SendRequest& request) {
  std::uint64_t total = 0;
  for (const Segment& segment : request.segments) total += segment.bytes;
  return total;
}

/// What this side's card finds wrong.
Status check_here(const FabricState& fabric, const FakePairState& pair, const SendRequest& request,
                  std::uint64_t bytes) {
  if (bytes > pair.device().port().message_bytes_max) return Status::kLocalLength;
  if (!request.inline_data) {
    for (const Segment& segment : request.segments)
      if (segment.bytes > 0 && !may_use(fabric, pair, segment)) return Status::kLocalProtection;
  }
  return Status::kSuccess;
}

/// The queue pair that packets of `pair` arrive at and whose answers come back, or nothing: from
/// here, all reasons look like silence.
FakePairState* find_peer(const FabricState& fabric, const FakePairState& pair) {
  if (!pair.device().reachable()) return nullptr;
  const auto found = fabric.pairs.find(pair.parameters.remote_qp_number);
  if (found == fabric.pairs.end()) return nullptr;
  FakePairState* peer = found->second;
  if (peer->phase != FakePairState::Phase::kReady || !peer->device().reachable() ||
      !peer->device().has_gid(pair.parameters.address.gid) ||
      !pair.device().has_gid(peer->parameters.address.gid) ||
      peer->parameters.remote_qp_number != pair.number ||
      peer->parameters.remote_psn != pair.parameters.local_psn) {
    return nullptr;
  }
  return peer;
}

/// What the peer's card finds wrong with the request itself.
Status check_there(const FabricState& fabric, const FakePairState& peer, const FakePairState& pair,
                   const SendRequest& request, std::uint64_t bytes) {
  const std::uint32_t mtu_bytes = peer.parameters.mtu_bytes;
  if (pair.parameters.mtu_bytes > mtu_bytes && bytes > mtu_bytes)
    return Status::kRemoteInvalidRequest;  // A packet longer than agreed.
  if (request.operation == Operation::kSend) return Status::kSuccess;
  if (!peer.options.remote_write) return Status::kRemoteInvalidRequest;
  if (request.operation == Operation::kWriteImmediate && !peer.device().limits.immediates)
    return Status::kRemoteInvalidRequest;
  if (bytes == 0) return Status::kSuccess;  // No key is looked at then.
  const auto found = fabric.by_rkey.find(request.rkey);
  if (found == fabric.by_rkey.end() || found->second->domain != peer.domain ||
      found->second->access != Access::kRemoteWrite ||
      !covers(*found->second, request.remote_address, bytes)) {
    return Status::kRemoteAccess;
  }
  return Status::kSuccess;
}

void gather(const SendRequest& request, std::byte* out) {
  for (const Segment& segment : request.segments) {
    if (segment.bytes == sizeof(std::uint64_t) &&
        reinterpret_cast<std::uintptr_t>(out) % sizeof(std::uint64_t) == 0) {
      // A card writes an aligned word as one, which a reader without a completion relies on.
      std::uint64_t word = 0;
      std::memcpy(&word, segment.data, sizeof(word));
      std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(out))
          .store(word, std::memory_order_release);
    } else if (segment.bytes > 0) {
      std::memmove(out, segment.data, segment.bytes);
    }
    out += segment.bytes;
  }
}

/// Takes the oldest receive for a message that needs one. The status is the sender's.
Status consume_receive(FabricState& fabric, FakePairState& peer, const SendRequest& request,
                       std::uint64_t bytes) {
  if (peer.receives.empty()) return Status::kRnrRetryExceeded;
  const ReceiveRequest receive = peer.receives.pop();
  Completion completion;
  Status ours = Status::kSuccess;
  auto& faults = peer.device().receive_faults;
  if (!faults.empty()) {
    completion.status = faults.front();
    faults.pop_front();
    if (completion.status != Status::kSuccess) ours = Status::kRemoteOperation;
  } else if (request.operation == Operation::kSend) {
    if (bytes > receive.segment.bytes) {
      completion.status = Status::kLocalLength;
      ours = Status::kRemoteInvalidRequest;
    } else if (bytes > 0 && !may_use(fabric, peer, receive.segment)) {
      completion.status = Status::kLocalProtection;
      ours = Status::kRemoteOperation;
    }
  }
  if (completion.status != Status::kSuccess) {
    completion.vendor_error = 1;
    complete_receive(peer, receive, completion);
    fake_enter_error(fabric, peer);
    return ours;
  }
  if (request.operation == Operation::kSend) {
    gather(request, const_cast<std::byte*>(receive.segment.data));
    completion.kind = CompletionKind::kReceive;
  } else {
    gather(request, reinterpret_cast<std::byte*>(request.remote_address));
    completion.kind = CompletionKind::kReceiveImmediate;
    completion.immediate = request.immediate;
  }
  completion.bytes = static_cast<std::uint32_t>(bytes);
  complete_receive(peer, receive, completion);
  return Status::kSuccess;
}

/// Delivers the request; the status of the sender's completion.
Status deliver(FabricState& fabric, FakePairState& pair, const SendRequest& request) {
  auto& faults = pair.device().send_faults;
  if (!faults.empty()) {
    const Status status = faults.front();
    faults.pop_front();
    if (status != Status::kSuccess) return status;
  }
  const std::uint64_t bytes = total_bytes(request);
  if (const Status status = check_here(fabric, pair, request, bytes); status != Status::kSuccess)
    return status;
  FakePairState* peer = find_peer(fabric, pair);
  if (peer == nullptr) return Status::kRetryExceeded;
  if (const Status status = check_there(fabric, *peer, pair, request, bytes);
      status != Status::kSuccess) {
    fake_raise(*peer->context,
               {.kind = EventKind::kAccessViolation,
                .qp_number = peer->number,
                .text = fmt::format(
                    "queue pair {}: {}", peer->number,
                    status == Status::kRemoteAccess ? "access violation" : "invalid request")});
    fake_enter_error(fabric, *peer);
    return status;
  }
  if (request.operation != Operation::kWrite) return consume_receive(fabric, *peer, request, bytes);
  gather(request, reinterpret_cast<std::byte*>(request.remote_address));
  return Status::kSuccess;
}

}  // namespace

void fake_complete_send(FakePairState& pair, const SendRequest& request, std::uint64_t slot,
                        Status status) {
  complete(pair, {.wr_id = request.wr_id, .status = status}, slot, false);
}

void fake_flush_receives(FakePairState& pair) {
  while (!pair.receives.empty() && flushes(pair))
    complete_receive(pair, pair.receives.pop(), {.status = Status::kFlushed});
}

void fake_enter_error(FabricState& fabric, FakePairState& pair) {
  if (pair.phase == FakePairState::Phase::kError) return;
  pair.phase = FakePairState::Phase::kError;
  for (const FakeFlight& flight : fabric.flights)
    if (flight.pair == &pair && flushes(pair))
      fake_complete_send(pair, flight.request, flight.slot, Status::kFlushed);
  std::erase_if(fabric.flights, [&](const FakeFlight& flight) { return flight.pair == &pair; });
  fake_flush_receives(pair);
}

void fake_execute(FabricState& fabric, FakePairState& pair, const SendRequest& request,
                  std::uint64_t slot) {
  if (pair.phase == FakePairState::Phase::kError) {
    if (flushes(pair)) fake_complete_send(pair, request, slot, Status::kFlushed);
    return;
  }
  const Status status = deliver(fabric, pair, request);
  if (status != Status::kSuccess || request.signaled)
    fake_complete_send(pair, request, slot, status);
  if (status != Status::kSuccess) fake_enter_error(fabric, pair);
}

std::size_t fake_release(FabricState& fabric, int n) {
  std::size_t done = 0;
  while (!fabric.flights.empty() && (n < 0 || done < static_cast<std::size_t>(n))) {
    const FakeFlight flight = std::move(fabric.flights.front());
    fabric.flights.pop_front();
    fake_execute(fabric, *flight.pair, flight.request, flight.slot);
    ++done;
  }
  return done;
}

void fake_raise(FakeContextState& context, DeviceEvent event) {
  context.events.push_back(std::move(event));
  context.wakeup.fire();
}

}  // namespace recua::net::verbs
