#include "cli/net_report.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/text_table.h"

namespace recua::cli {
namespace {

using cluster::LatencyResult;
using cluster::LinkReport;
using cluster::LinkTransport;
using cluster::TransportReport;
using nlohmann::ordered_json;

/// About what a token's activations of a large model take: where latency decides.
constexpr std::uint32_t kTypicalBytes = 8192;

double to_us(net::Duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

/// Three digits that count.
std::string us_text(net::Duration duration) {
  const double us = to_us(duration);
  if (us < 9.995) return fmt::format("{:.2f}", us);
  if (us < 99.95) return fmt::format("{:.1f}", us);
  return fmt::format("{:.0f}", us);
}

std::string rate_text(double bytes_per_second) {
  if (bytes_per_second < 999.5e6) return fmt::format("{:.1f} MB/s", bytes_per_second / 1e6);
  return fmt::format("{:.2f} GB/s", bytes_per_second / 1e9);
}

const TransportReport* find(const LinkReport& report, LinkTransport transport) {
  const auto at = std::find_if(
      report.transports.begin(), report.transports.end(),
      [transport](const TransportReport& entry) { return entry.transport == transport; });
  return at == report.transports.end() || !at->available ? nullptr : &*at;
}

const LatencyResult* typical(const TransportReport& entry) {
  const LatencyResult* best = nullptr;
  for (const LatencyResult& result : entry.latency) {
    if (best == nullptr || (result.bytes <= kTypicalBytes && result.bytes > best->bytes) ||
        best->bytes > kTypicalBytes) {
      best = &result;
    }
  }
  return best;
}

/// The description without the reason, which stands behind it anyway.
std::string_view without_reason(std::string_view description) {
  return description.substr(0, description.find(", because"));
}

std::string table(const LinkReport& report) {
  std::vector<std::vector<std::string>> rows(1, {"transport"});
  for (const TransportReport& entry : report.transports) {
    if (!entry.available) continue;
    std::vector<std::string> row(1, std::string(to_string(entry.transport)));
    for (const LatencyResult& result : entry.latency) {
      if (rows.size() == 1) rows[0].push_back(">" + size_text(result.bytes));
      row.push_back(us_text(result.p50) + " / " + us_text(result.p99));
    }
    if (entry.bandwidth) {
      if (rows.size() == 1) rows[0].emplace_back(">bandwidth");
      row.push_back(rate_text(entry.bandwidth->bytes_per_second));
    }
    rows.push_back(std::move(row));
  }
  if (rows.size() == 1) return {};
  std::string out = "\n" + text_table(std::move(rows)) +
                    "\nOne way in microseconds, p50 / p99: half of a round trip.";
  for (const TransportReport& entry : report.transports) {
    if (!entry.available || !entry.bandwidth) continue;
    out += fmt::format(" Bandwidth: {} messages of {} under way.", entry.bandwidth->window,
                       size_text(entry.bandwidth->bytes));
    break;
  }
  return out + "\n";
}

ordered_json transport_json(const TransportReport& entry) {
  ordered_json out;
  out["transport"] = short_name(entry.transport);
  out["available"] = entry.available;
  out["description"] = entry.available ? ordered_json(entry.description) : ordered_json(nullptr);
  out["reason"] = entry.available ? ordered_json(nullptr) : ordered_json(entry.reason);
  out["latency"] = ordered_json::array();
  for (const LatencyResult& result : entry.latency) {
    ordered_json latency;
    latency["bytes"] = result.bytes;
    latency["n_samples"] = result.n_samples;
    latency["p50_us"] = to_us(result.p50);
    latency["p99_us"] = to_us(result.p99);
    out["latency"].push_back(std::move(latency));
  }
  out["bandwidth"] = nullptr;
  if (entry.bandwidth) {
    ordered_json bandwidth;
    bandwidth["bytes"] = entry.bandwidth->bytes;
    bandwidth["window"] = entry.bandwidth->window;
    bandwidth["n_messages"] = entry.bandwidth->n_messages;
    bandwidth["bytes_per_second"] = entry.bandwidth->bytes_per_second;
    out["bandwidth"] = std::move(bandwidth);
  }
  return out;
}

}  // namespace

std::string size_text(std::uint32_t bytes) {
  constexpr std::uint32_t kKiB = 1U << 10;
  constexpr std::uint32_t kMiB = 1U << 20;
  if (bytes >= kMiB && bytes % kMiB == 0) return fmt::format("{} MiB", bytes / kMiB);
  if (bytes >= kKiB && bytes % kKiB == 0) return fmt::format("{} KiB", bytes / kKiB);
  return fmt::format("{} B", bytes);
}

std::string_view short_name(LinkTransport transport) {
  return transport == LinkTransport::kSharedMemory ? "shm" : to_string(transport);
}

Result<std::vector<LinkTransport>> parse_link_transports(std::string_view text) {
  std::vector<LinkTransport> out;
  const auto add = [&out](LinkTransport transport) {
    if (std::find(out.begin(), out.end(), transport) == out.end()) out.push_back(transport);
  };
  for (std::string_view rest = text;;) {
    const std::size_t comma = rest.find(',');
    const std::string_view name = rest.substr(0, comma);
    bool known = name == "auto";
    for (const LinkTransport transport : cluster::kAllLinkTransports) {
      if (name != "auto" && name != short_name(transport)) continue;
      add(transport);
      known = true;
    }
    if (!known) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("--transport is '{}', need auto or some of shm,rdma,tcp", text)};
    }
    if (comma == std::string_view::npos) return out;
    rest.remove_prefix(comma + 1);
  }
}

std::optional<std::string> slower_note(const LinkReport& report) {
  const TransportReport* chosen = find(report, report.chosen);
  const LatencyResult* ours = chosen == nullptr ? nullptr : typical(*chosen);
  if (ours == nullptr) return std::nullopt;
  const TransportReport* better = nullptr;
  const LatencyResult* theirs = nullptr;
  for (const TransportReport& entry : report.transports) {
    const LatencyResult* result = entry.available ? typical(entry) : nullptr;
    if (result == nullptr || to_us(result->p50) >= 0.9 * to_us(ours->p50)) continue;
    if (theirs != nullptr && result->p50 >= theirs->p50) continue;
    better = &entry;
    theirs = result;
  }
  if (better == nullptr) return std::nullopt;
  return fmt::format("{} was faster in this measurement: {} took {} us against {} us",
                     to_string(better->transport), size_text(theirs->bytes), us_text(theirs->p50),
                     us_text(ours->p50));
}

std::string link_text(const LinkReport& report) {
  std::string out = fmt::format("link to {} ({}, recua {})\n", report.address, report.name,
                                report.software_version);
  out += table(report) + "\n";
  for (const TransportReport& entry : report.transports) {
    const std::string_view name = to_string(entry.transport);
    if (!entry.available) {
      out += fmt::format("{}: not available, because {}\n", name, entry.reason);
    } else if (without_reason(entry.description) != name) {
      out += fmt::format("{}\n", without_reason(entry.description));
    }
  }
  if (!out.ends_with("\n\n")) out += "\n";
  if (report.chosen_description.empty()) {
    return out + fmt::format("A link that may use everything failed: {}\n", report.chosen_reason);
  }
  out += fmt::format("recua uses {}, because {}.\n", without_reason(report.chosen_description),
                     report.chosen_reason);
  if (const auto note = slower_note(report)) out += fmt::format("Note: {}.\n", *note);
  return out;
}

std::string link_json(const LinkReport& report) {
  ordered_json out;
  out["worker"]["address"] = report.address;
  out["worker"]["name"] = report.name;
  out["worker"]["version"] = report.software_version;
  out["transports"] = ordered_json::array();
  for (const TransportReport& entry : report.transports) {
    out["transports"].push_back(transport_json(entry));
  }
  const bool chosen = !report.chosen_description.empty();
  out["chosen"]["transport"] = chosen ? ordered_json(short_name(report.chosen)) : nullptr;
  out["chosen"]["description"] =
      chosen ? ordered_json(without_reason(report.chosen_description)) : nullptr;
  out["chosen"]["reason"] = report.chosen_reason;
  const auto note = slower_note(report);
  out["note"] = note ? ordered_json(*note) : ordered_json(nullptr);
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace recua::cli
