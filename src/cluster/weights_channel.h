#pragma once
/// The channel on which a coordinator pushes chunks of weights; docs/protocol.md, "Weights".

#include <cstdint>

#include "cluster/chunks.h"
#include "rpc/channel.h"

namespace recua::cluster {

/// Its number, the same in every session: no plan has so many workers.
inline constexpr std::uint32_t kWeightsChannel = 0xffff'ffff;
/// Chunks that may be under way: 16 MiB keep a fast link busy.
inline constexpr std::uint32_t kWeightsSlots = 4;

/// A worker's ring for chunks of up to chunk_bytes.
constexpr rpc::RingShape weights_ring(std::uint64_t chunk_bytes) {
  // Whole pages, so that each slot starts at one.
  const std::uint64_t bytes = rpc::kTensorHeaderBytes + chunk_bytes;
  return {.n_slots = kWeightsSlots, .slot_bytes = (bytes + 4095) / 4096 * 4096};
}

}  // namespace recua::cluster
