#include "rpc/link_window.h"

#include <string>

#include <fmt/format.h>

namespace recua::rpc {

Error LinkWindow::misfit(const TensorHeader& header, std::uint64_t expected) const {
  std::string wrong;
  if (header.session != id_.session) {
    wrong = fmt::format("session {:x}, the channel's is {:x}", header.session, id_.session);
  } else if (header.epoch > id_.epoch) {
    wrong = fmt::format("epoch {}, the channel's is {}", header.epoch, id_.epoch);
  } else if (header.sequence != expected) {
    wrong = fmt::format("sequence {}, expected {}", header.sequence, expected);
  } else {
    wrong = fmt::format("{} bytes ({} rows of {}, descriptor of {}, padding of {}), a slot has {}",
                        padded_bytes(header), header.n_rows, header.row_bytes,
                        header.descriptor_bytes, header.padding_bytes, ring_.slot_bytes);
  }
  return {ErrorCode::kProtocol, "sent a tensor message of " + wrong};
}

Error LinkWindow::not_held(const Arrival& arrival) const {
  return {ErrorCode::kProtocol,
          fmt::format("announced message {}, whose slot it does not hold: {} slots, {} released, "
                      "{} taken",
                      arrival.sequence, ring_.n_slots, n_told_, n_delivered_)};
}

Error LinkWindow::cut_twice(const Arrival& arrival, std::uint8_t n_pieces) {
  return {ErrorCode::kProtocol, fmt::format("announced message {} in {} pieces, then in {}",
                                            arrival.sequence, n_pieces, arrival.n_pieces)};
}

void LinkWindow::tell(wire::LinkFenced& record) {
  const std::uint64_t n_complete = first_missing();
  record.set_n_complete(n_complete);
  for (std::uint64_t i = n_complete; holds(i); ++i) {
    const Slot& its = slot(i);
    if (!its.complete && its.pieces == 0) continue;
    wire::Outstanding& outstanding = *record.add_outstanding();
    outstanding.set_sequence(i);
    outstanding.set_pieces(its.complete ? ~std::uint32_t{0} : its.pieces);
  }
  record.set_n_released(tell());
}

}  // namespace recua::rpc
