#include "cluster/link_book.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

constexpr const char* kCoordinator = "coordinator";
/// The activations' two ends and a few more; a worker that tells of more is not believed.
constexpr int kLinksPerWorkerMax = 8;
constexpr std::size_t kTextBytesMax = 1024;

/// The line without its own idea of the link's name: workers know each other by other addresses
/// than the coordinator's user does.
std::string_view without_names(std::string_view text) {
  if (!text.starts_with("link ")) return text;
  const std::size_t colon = text.find(": ");
  return colon == std::string_view::npos ? text : text.substr(colon + 2);
}

void log_line_of(const std::string& from, const std::string& to, std::string_view text,
                 bool for_debugging) {
  const LogLevel level = for_debugging ? LogLevel::kDebug : LogLevel::kInfo;
  if (!log_enabled(level)) return;
  log_line(level, fmt::format("link {}->{}: {}", from, to, without_names(text)));
}

}  // namespace

LinkBook::Names LinkBook::names(std::uint32_t number) const {
  return {.from = number == 0 ? kCoordinator : workers_[number - 1].name,
          .to = number == workers_.size() ? kCoordinator : workers_[number].name};
}

bool LinkBook::has_end(std::size_t worker, std::uint32_t number, bool sends) const {
  return sends ? number == worker + 1 : number == worker;
}

void LinkBook::own_report(std::uint32_t number, bool sends, std::string_view text) const {
  const Names link = names(number);
  const bool heard_from_sender = !sends && workers_.back().reports;
  log_line_of(link.from, link.to, text, heard_from_sender);
}

void LinkBook::report(std::size_t worker, const wire::LinkReport& report) const {
  if (!has_end(worker, report.number(), report.sends())) return;
  const Names link = names(report.number());
  const std::string text = rpc::wire_text(report.text(), kTextBytesMax);
  // Of the first channel we are the sender ourselves.
  const bool heard_from_sender = !report.sends() && (worker == 0 || workers_[worker - 1].reports);
  log_line_of(link.from, link.to, text, heard_from_sender);
}

void LinkBook::add_own(std::uint32_t number, bool sends, std::string transport,
                       const rpc::ChannelCounters& counters) {
  const Names link = names(number);
  links_.push_back({.number = number,
                    .stats = {.from = link.from,
                              .to = link.to,
                              .transport = std::move(transport),
                              .sends = sends,
                              .counters = counters}});
}

void LinkBook::add(std::size_t worker, const wire::SessionClosed& closed) {
  for (SessionLink& link : from_wire(closed, kLinksPerWorkerMax)) {
    if (!has_end(worker, link.number, link.stats.sends)) continue;
    const Names known = names(link.number);
    link.stats.from = known.from;
    link.stats.to = known.to;
    links_.push_back(std::move(link));
  }
}

std::vector<rpc::LinkStats> LinkBook::stats() const {
  std::vector<SessionLink> sorted = links_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const SessionLink& a, const SessionLink& b) {
    return std::pair(a.number, !a.stats.sends) < std::pair(b.number, !b.stats.sends);
  });
  std::vector<rpc::LinkStats> out;
  for (SessionLink& link : sorted) out.push_back(std::move(link.stats));
  return out;
}

}  // namespace recua::cluster
