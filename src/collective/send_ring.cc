#include "collective/send_ring.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"

namespace recua::collective {

Result<SendRing> SendRing::create(const rpc::RingShape& ring, std::uint32_t n_ranks,
                                  std::size_t caller_bytes) {
  SendRing out;
  out.buffer_bytes_ = align_up<std::size_t>(ring.slot_bytes, 64);
  out.users_.resize(2 * std::size_t{std::max(ring.n_slots, n_ranks)});
  for (Users& users : out.users_) users.until.resize(n_ranks);
  RECUA_ASSIGN_OR_RETURN(out.memory_, sys::AlignedBuffer::allocate(
                                          out.users_.size() * out.buffer_bytes_ + caller_bytes));
  return out;
}

bool SendRing::take(std::size_t index, std::size_t n_sends,
                    std::span<rpc::ChannelSender* const> senders) {
  Users& users = users_[index];
  RECUA_CHECK(senders.size() == users.until.size());
  if (users.n_waiting > 0) return false;
  for (std::size_t i = 0; i < senders.size(); ++i) {
    if (senders[i] != nullptr && senders[i]->n_completed() < users.until[i]) return false;
  }
  users.n_waiting = n_sends;
  return true;
}

void SendRing::sent(std::size_t index, std::size_t peer, const rpc::ChannelSender& sender) {
  Users& users = users_[index];
  RECUA_CHECK(users.n_waiting > 0);
  --users.n_waiting;
  users.until[peer] = sender.n_sent();
}

}  // namespace recua::collective
