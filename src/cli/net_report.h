#pragma once
/// What `recua net test` says of a measured link. Pure functions.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cluster/link_probe.h"

namespace recua::cli {

/// For people: a table of the transports that work, why the others do not, and what recua uses.
std::string link_text(const cluster::LinkReport& report);

/// One JSON object and a newline. Keys are never renamed or removed:
///   worker {address, name, version}, transports [{transport, available, description, reason,
///     latency [{bytes, n_samples, p50_us, p99_us}], bandwidth {bytes, window, n_messages,
///     bytes_per_second}}], chosen {transport, description, reason}, note
/// transport is shm, rdma or tcp; times are one way; what does not apply is null or empty.
std::string link_json(const cluster::LinkReport& report);

/// "rdma, tcp" or "auto" (all), in the order given, each once. kInvalidArgument: names the flag.
Result<std::vector<cluster::LinkTransport>> parse_link_transports(std::string_view text);
/// The name on the command line and in JSON.
std::string_view short_name(cluster::LinkTransport transport);

/// A transport that was faster at 8 KiB than the one that is used, as a sentence; nothing if none.
std::optional<std::string> slower_note(const cluster::LinkReport& report);

/// "64 B", "8 KiB", "1 MiB", "1000 B": the largest unit that divides it.
std::string size_text(std::uint32_t bytes);

}  // namespace recua::cli
