#include "cluster/link_book.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "cluster/rank_group.h"
#include "cluster/weights_channel.h"
#include "rpc/wire_error.h"

namespace recua::cluster {
namespace {

constexpr const char* kCoordinator = "coordinator";
/// The activations' two ends and a few more, besides two for each other rank; a worker that tells
/// of more is not believed.
constexpr std::size_t kLinksPerWorkerMax = 8;
constexpr std::size_t kTextBytesMax = 1024;

/// The line without its own idea of the link's or the group's name: workers know each other by
/// other addresses than the coordinator's user does.
std::string_view without_names(std::string_view text) {
  if (!text.starts_with("link ") && !text.starts_with("ranks ")) return text;
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

LinkBook::Names LinkBook::names(std::uint32_t number, std::size_t worker) const {
  if (number == kWeightsChannel) return {.from = kCoordinator, .to = workers_[worker].name};
  if (const auto channel = group_channel_of(number)) {
    return {.from = workers_[group_of(worker) + channel->from].name,
            .to = workers_[group_of(worker) + channel->to].name};
  }
  if (number == workers_.size()) return {.from = workers_[last()].name, .to = kCoordinator};
  const auto sender = sender_to(number);
  return {.from = sender ? workers_[*sender].name : kCoordinator, .to = workers_[number].name};
}

bool LinkBook::has_end(std::size_t worker, std::uint32_t number, bool sends) const {
  if (number == kWeightsChannel) return !sends;
  if (const auto channel = group_channel_of(number)) {
    const bool is_rank = channel->from < n_ranks_ && channel->to < n_ranks_;
    return is_rank && (sends ? channel->from : channel->to) == worker % n_ranks_;
  }
  if (!sends) return number == worker;
  return number == workers_.size() ? worker == last() : sender_to(number) == worker;
}

void LinkBook::weights_report(std::size_t worker, std::string_view text) const {
  log_info("link {}->{} for weights: {}", kCoordinator, workers_[worker].name, without_names(text));
}

void LinkBook::own_report(std::uint32_t number, bool sends, std::string_view text) const {
  const Names link = names(number);
  const bool heard_from_sender = !sends && workers_[last()].reports;
  log_line_of(link.from, link.to, text, heard_from_sender);
}

void LinkBook::group_report(std::size_t worker, std::string_view text) const {
  std::string names;
  for (std::size_t rank = 0; rank < n_ranks_; ++rank) {
    if (rank > 0) names += ", ";
    names += workers_[group_of(worker) + rank].name;
  }
  log_info("ranks {}: {}", names, without_names(text));
}

void LinkBook::report(std::size_t worker, const wire::LinkReport& report) const {
  const auto rank = static_cast<std::uint32_t>(worker % n_ranks_);
  if (n_ranks_ > 1 && report.number() == group_report_number(rank)) {
    return group_report(worker, rpc::wire_text(report.text(), kTextBytesMax));
  }
  // Of weights we are the sender ourselves.
  if (report.number() == kWeightsChannel || !has_end(worker, report.number(), report.sends())) {
    return;
  }
  const Names link = names(report.number(), worker);
  const std::string text = rpc::wire_text(report.text(), kTextBytesMax);
  // Ranks all know links. Into the first workers we send ourselves.
  const auto sender = sender_to(worker);
  const bool heard_from_sender = !report.sends() && (group_channel_of(report.number()) || !sender ||
                                                     workers_[*sender].reports);
  log_line_of(link.from, link.to, text, heard_from_sender);
}

void LinkBook::add_own(std::uint32_t number, bool sends, std::string transport,
                       const rpc::ChannelCounters& counters) {
  const Names link = names(number);
  Entry& entry = entries_.emplace_back();
  entry.link.number = number;
  entry.link.stats.from = link.from;
  entry.link.stats.to = link.to;
  entry.link.stats.transport = std::move(transport);
  entry.link.stats.sends = sends;
  entry.link.stats.counters = counters;
}

void LinkBook::add_weights(std::size_t worker, const rpc::LinkStats& stats) {
  const Names link = names(kWeightsChannel, worker);
  Entry& entry = entries_.emplace_back();
  entry.worker = worker;
  entry.link.number = kWeightsChannel;
  entry.link.stats = stats;
  entry.link.stats.from = link.from;
  entry.link.stats.to = link.to;
  entry.link.stats.carries = "weights";
}

void LinkBook::add(std::size_t worker, const wire::SessionClosed& closed) {
  const auto links_max = static_cast<int>(kLinksPerWorkerMax + 2 * (n_ranks_ - 1));
  for (SessionLink& link : from_wire(closed, links_max)) {
    if (!has_end(worker, link.number, link.stats.sends)) continue;
    const Names known = names(link.number, worker);
    Entry& entry = entries_.emplace_back();
    entry.link = std::move(link);
    entry.link.stats.from = known.from;
    entry.link.stats.to = known.to;
    if (entry.link.number == kWeightsChannel) {
      entry.link.stats.carries = "weights";
      entry.worker = worker;
    } else if (group_channel_of(entry.link.number)) {
      entry.link.stats.carries = "exchanges";
      entry.worker = group_of(worker);
    }
  }
}

std::vector<rpc::LinkStats> LinkBook::stats() const {
  std::vector<Entry> sorted = entries_;
  const auto key = [](const Entry& entry) {
    return std::tuple(entry.link.number, entry.worker, !entry.link.stats.sends);
  };
  std::sort(sorted.begin(), sorted.end(),
            [key](const Entry& a, const Entry& b) { return key(a) < key(b); });
  std::vector<rpc::LinkStats> out;
  out.reserve(sorted.size());
  for (Entry& entry : sorted) out.push_back(std::move(entry.link.stats));
  return out;
}

}  // namespace recua::cluster
