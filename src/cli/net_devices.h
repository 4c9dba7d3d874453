#pragma once
/// What `recua net devices` says: which RDMA ports this machine has, and which of them recua uses.
/// Pure functions over what a Provider found.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/verbs/address.h"
#include "net/verbs/verbs.h"

namespace recua::cli {

struct DeviceSurvey {
  std::vector<net::verbs::DeviceInfo> devices;
  std::string reason;               // Why there is no RDMA here; empty when there is a device.
  std::vector<std::string> advice;  // What to install or to look at, then.
  std::optional<std::uint64_t> locked_bytes_max;  // RLIMIT_MEMLOCK; nothing: no limit.
};

/// Asks the provider. built_with_verbs: whether this program has libibverbs. No RDMA is no error:
/// the survey then says why. kIo and others: the system failed.
Result<DeviceSurvey> survey_devices(net::verbs::Provider& provider, bool built_with_verbs,
                                    std::optional<std::uint64_t> locked_bytes_max);

/// For people.
std::string devices_text(const DeviceSurvey& survey);

/// One JSON object and a newline. Keys are never renamed or removed:
///   devices: [{name, transport, ports: [{port, state, link_layer, mtu_bytes, speed_mbit, lid,
///     message_bytes_max, usable, reason, gid_index, gids: [{index, type, address, interface,
///     prefix_length, usable, reason}]}]}], reason, advice, locked_bytes_max
std::string devices_json(const DeviceSurvey& survey);

/// What locking memory needs is told from here on; a ring of a large model's activations and the
/// buffers behind it stay below.
inline constexpr std::uint64_t kLockedBytesWanted = std::uint64_t{1} << 30;

}  // namespace recua::cli
