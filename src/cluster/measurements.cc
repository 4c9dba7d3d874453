#include "cluster/measurements.h"

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

namespace recua::cluster {
namespace {

constexpr LinkSpec kUnknownLink = {.transport = LinkTransport::kTcp,
                                   .latency_seconds = 50e-6,
                                   .bytes_per_second = 125e6,
                                   .message_seconds = 3e-6};

std::string listed(const std::vector<std::string>& names) {
  constexpr std::size_t kNamesMax = 4;
  std::string out;
  for (std::size_t i = 0; i < names.size() && i < kNamesMax; ++i) {
    out += (i == 0 ? "" : ", ") + names[i];
  }
  if (names.size() > kNamesMax) out += fmt::format(" and {} more", names.size() - kNamesMax);
  return out;
}

LinkSpec slower_of(const LinkSpec& a, const LinkSpec& b) {
  return {.transport = std::max(a.transport, b.transport),
          .latency_seconds = std::max(a.latency_seconds, b.latency_seconds),
          .bytes_per_second = std::min(a.bytes_per_second, b.bytes_per_second),
          .message_seconds = std::max(a.message_seconds, b.message_seconds)};
}

/// Workers that share a host get its limits.
void find_hosts(std::span<const OfferedWorker> workers, Measurements& measurements,
                ClusterShape& shape) {
  std::map<std::string, std::vector<std::size_t>> hosts;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    if (!workers[w].host.empty()) hosts[workers[w].host].push_back(w);
  }
  for (const auto& [host, members] : hosts) {
    if (members.size() < 2) continue;
    std::uint32_t n_threads = 0;
    for (const std::size_t w : members) n_threads += workers[w].n_threads;
    const auto together = measurements.host_speed(host, n_threads);
    if (!together) continue;
    for (const std::size_t w : members) {
      shape.machines[w].host = static_cast<std::uint32_t>(shape.hosts.size());
    }
    shape.hosts.push_back(
        {.bytes_per_second = together->bytes_per_second,
         .macs_per_second = together->macs_per_second,
         .by_type = together->by_type,
         .attention_macs_per_second = together->attention_macs_per_second,
         .attention_decode_macs_per_second = together->attention_decode_macs_per_second});
  }
}

}  // namespace

MeasuredCluster measured_cluster(std::span<const OfferedWorker> workers,
                                 Measurements& measurements) {
  MeasuredCluster out;
  std::vector<Machine> machines;
  std::vector<std::string> no_speed;
  std::vector<std::string> no_link;
  std::vector<LinkSpec> to_coordinator;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const OfferedWorker& worker = workers[w];
    std::optional<MachineSpeed> speed = measurements.speed(w);
    if (!speed) {
      no_speed.push_back(worker.name);
      speed = measurements.assumed_speed(w);
    }
    machines.push_back({.name = worker.name,
                        .group = 0,
                        .host = kOwnHost,
                        .memory_bytes = worker.memory_bytes,
                        .n_threads = worker.n_threads,
                        .speed = std::move(*speed)});
    const std::optional<LinkSpec> link = measurements.coordinator_link(w);
    if (!link) no_link.push_back(worker.name);
    to_coordinator.push_back(link.value_or(kUnknownLink));
  }
  out.shape = cluster_of(std::move(machines), kUnknownLink);
  out.shape.coordinator_links = to_coordinator;
  bool assumed_links = false;
  for (std::uint32_t a = 0; a < workers.size(); ++a) {
    for (std::uint32_t b = a + 1; b < workers.size(); ++b) {
      const std::optional<LinkSpec> link = measurements.link(a, b);
      assumed_links = assumed_links || !link;
      out.shape.set_link(a, b, link ? *link : slower_of(to_coordinator[a], to_coordinator[b]));
    }
  }
  find_hosts(workers, measurements, out.shape);
  if (!no_speed.empty()) {
    out.notes.push_back(
        fmt::format("the speed of {} was not measured, it is taken to be that of this machine",
                    listed(no_speed)));
  }
  if (!no_link.empty()) {
    out.notes.push_back(
        fmt::format("the link to {} could not be measured, it is taken to have 50 us and 1 Gbit/s",
                    listed(no_link)));
  }
  if (assumed_links) {
    out.notes.push_back(
        "links between workers were not measured, they are taken to be like those from here");
  }
  return out;
}

}  // namespace recua::cluster
