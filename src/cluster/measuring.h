#pragma once
/// What a worker measures for a planner: its own speed, and the link from it to another worker.
/// docs/protocol.md, "Measuring a worker".

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "cluster/link_transport.h"
#include "cluster/machines.h"
#include "net/connection.h"
#include "quant/data_type.h"

namespace recua::cluster {

inline constexpr std::size_t kMeasuredTypesMax = 8;
inline constexpr std::uint32_t kMeasuredWidthMin = 256;
inline constexpr std::uint32_t kMeasuredWidthMax = 4096;

struct SpeedRequest {
  std::uint32_t n_threads = 0;              // 0: as many as the worker computes with.
  std::vector<quant::DataType> types;       // Of weights; 1 to kMeasuredTypesMax.
  std::uint32_t width = kMeasuredWidthMax;  // Of the matrices: a power of two within the bounds.
  bool again = false;                       // Whatever is remembered.
};

/// How a worker does it. Called on any thread, one call at a time; each takes seconds.
struct Measuring {
  std::function<Result<MachineSpeed>(const SpeedRequest&)> speed;
  /// The one that links would use, of those allowed.
  std::function<Result<LinkSpec>(const net::Endpoint& peer, std::span<const LinkTransport> allowed)>
      link;
};

}  // namespace recua::cluster
