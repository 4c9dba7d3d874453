// Each transport gets a session of its own whose links may use nothing else; what it came up on
// says whether it works and why not. The last session may use everything: it shows what links take.
#include "cluster/link_probe.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "cluster/echo_link.h"
#include "cluster/echo_session.h"
#include "cluster/measure_wire.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;

constexpr std::uint64_t kWarmUpMax = 100;

class Probe {
 public:
  Probe(net::Env env, ProbeOptions options, ProbeProgress progress)
      : env_(std::move(env)), options_(std::move(options)), progress_(std::move(progress)) {
    if (options_.policy != nullptr) policy_ = *options_.policy;
  }

  asio::awaitable<Result<LinkReport>> run();

 private:
  /// Links of the session may use these, as far as both ends allow.
  [[nodiscard]] EchoLink::Options link_options(std::span<const LinkTransport> transports) const;
  /// Why a transport cannot be used, as far as that is known without a link.
  [[nodiscard]] std::optional<std::string> why_not(LinkTransport transport) const;
  /// Why a link that may use nothing else did not come up on it.
  [[nodiscard]] static std::string why_not(const EchoLink& link, LinkTransport transport);
  /// Errors of the worker come back as errors, those of the transport in the report.
  asio::awaitable<Result<void>> measure(TransportReport& report);
  asio::awaitable<Result<void>> measure_on(EchoLink& link, TransportReport& report);
  /// Lets a link of all transports settle, as those of a model do.
  asio::awaitable<Result<void>> choose(LinkReport& report);
  void explain_choice(LinkReport& report) const;
  void begin_part(const std::string& what) {
    if (progress_) progress_(n_done_, n_total_, what);
    ++n_done_;
  }

  net::Env env_;
  ProbeOptions options_;
  ProbeProgress progress_;
  rpc::LinkPolicy policy_;
  std::shared_ptr<EchoPeer> peer_;
  std::size_t n_done_ = 0;
  std::size_t n_total_ = 0;
};

EchoLink::Options Probe::link_options(std::span<const LinkTransport> transports) const {
  const auto may_use = [&](LinkTransport transport) {
    return std::find(transports.begin(), transports.end(), transport) != transports.end();
  };
  EchoLink::Options out;
  out.policy = policy_;
  if (policy_.allow_rdma && !may_use(LinkTransport::kRdma)) {
    out.policy.allow_rdma = false;
    out.policy.no_rdma_reason = kNoRdmaAsked;
  }
  out.policy.allow_shared_memory =
      policy_.allow_shared_memory && may_use(LinkTransport::kSharedMemory);
  for (const LinkTransport transport : transports) out.transports.push_back(to_wire(transport));
  out.rows_bytes_max = std::max(options_.bandwidth_bytes,
                                *std::max_element(options_.sizes.begin(), options_.sizes.end()));
  out.stream_bytes = options_.bandwidth_bytes;
  out.window = kProbeWindow;
  return out;
}

std::optional<std::string> Probe::why_not(LinkTransport transport) const {
  if (transport == LinkTransport::kRdma && !policy_.allow_rdma) {
    return "this end " + policy_.no_rdma_reason;
  }
  if (transport == LinkTransport::kSharedMemory) {
    const std::string& theirs = peer_->info().shared_memory_host;
    if (!policy_.allow_shared_memory) return "this end does not share memory";
    if (theirs.empty()) return "the peer does not share memory";
    if (theirs != options_.shared_memory_host) {
      return "the peer is not on this host, or runs as another user or in another container";
    }
  }
  return std::nullopt;
}

std::string Probe::why_not(const EchoLink& link, LinkTransport transport) {
  if (transport == LinkTransport::kSharedMemory) {
    // What carries the link then tells of RDMA only.
    for (const std::string& line : link.reports()) {
      if (line.find("not shared memory") != std::string::npos) return std::string(reason_of(line));
    }
    return "the peer does not use it";
  }
  const std::string there = link.transport_there();
  const std::string back = link.transport_back();
  const std::string_view why = reason_of(transport_of(there) == transport ? back : there);
  return why.empty() ? "the peer does not use it" : std::string(why);
}

asio::awaitable<Result<void>> Probe::measure_on(EchoLink& link, TransportReport& report) {
  const std::string name(to_string(report.transport));
  RECUA_CO_RETURN_IF_ERROR(co_await link.settle());
  for (const bool there : {true, false}) {
    const std::string runs_on = there ? link.transport_there() : link.transport_back();
    if (transport_of(runs_on) == report.transport) continue;
    report.reason = why_not(link, report.transport);
    co_return ok();
  }
  report.description = link.transport_there();
  for (const std::uint32_t bytes : options_.sizes) {
    begin_part(fmt::format("{}, {} bytes", name, bytes));
    // Caches, registered pages and the peer's spinning are warm then.
    RECUA_CO_RETURN_IF_ERROR(co_await link.round_trips(bytes, options_.duration / 10, kWarmUpMax));
    RECUA_CO_ASSIGN_OR_RETURN(
        std::vector<net::Duration> samples,
        co_await link.round_trips(bytes, options_.duration, options_.samples_max));
    LatencyResult result{.bytes = bytes, .n_samples = samples.size()};
    result.p50 = quantile(samples, 0.50) / 2;
    result.p99 = quantile(samples, 0.99) / 2;
    report.latency.push_back(result);
  }
  begin_part(fmt::format("{}, bandwidth", name));
  RECUA_CO_ASSIGN_OR_RETURN(const EchoLink::Stream stream,
                            co_await link.stream(options_.duration, options_.samples_max));
  const double seconds = std::chrono::duration<double>(stream.took).count();
  BandwidthResult bandwidth;
  bandwidth.bytes = options_.bandwidth_bytes;
  bandwidth.window = kProbeWindow;
  bandwidth.n_messages = stream.n_messages;
  const double bytes = static_cast<double>(stream.n_messages) * options_.bandwidth_bytes;
  bandwidth.bytes_per_second = seconds > 0 ? bytes / seconds : 0.0;
  report.bandwidth = bandwidth;
  const std::string runs_on = link.transport_there();
  if (transport_of(runs_on) != report.transport) {
    report.reason = "it broke while it was measured; the link went on over " + runs_on;
    co_return ok();
  }
  report.available = true;
  co_return ok();
}

asio::awaitable<Result<void>> Probe::measure(TransportReport& report) {
  const std::size_t n_after = n_done_ + options_.sizes.size() + 1;
  if (auto reason = why_not(report.transport)) {
    report.reason = std::move(*reason);
    n_done_ = n_after;
    co_return ok();
  }
  const EchoLink::Options link_only = link_options(std::span(&report.transport, 1));
  Result<std::unique_ptr<EchoLink>> link = co_await EchoLink::open(peer_, link_only);
  Result<void> measured = ok();
  if (link.ok()) {
    measured = co_await measure_on(**link, report);
    co_await (*link)->close();
  } else {
    measured = link.error();
  }
  n_done_ = n_after;
  if (peer_->failure()) co_return Error(*peer_->failure());
  if (!measured.ok()) report.reason = measured.error().message;
  if (!measured.ok() || !report.available) {
    report.available = false;
    report.latency.clear();
    report.bandwidth.reset();
    report.description.clear();
  }
  co_return ok();
}

asio::awaitable<Result<void>> Probe::choose(LinkReport& report) {
  const EchoLink::Options everything = link_options(kAllLinkTransports);
  Result<std::unique_ptr<EchoLink>> link = co_await EchoLink::open(peer_, everything);
  Result<void> settled = ok();
  if (link.ok()) {
    settled = co_await (*link)->settle();
    if (settled.ok()) report.chosen_description = (*link)->transport_there();
    co_await (*link)->close();
  } else {
    settled = link.error();
  }
  if (peer_->failure()) co_return Error(*peer_->failure());
  if (settled.ok()) {
    report.chosen = transport_of(report.chosen_description);
    explain_choice(report);
  } else {
    report.chosen_reason = settled.error().message;
  }
  co_return ok();
}

void Probe::explain_choice(LinkReport& report) const {
  if (report.chosen == LinkTransport::kSharedMemory) {
    report.chosen_reason = "both ends are on one host";
    return;
  }
  const std::string_view said = reason_of(report.chosen_description);
  if (!said.empty()) {
    report.chosen_reason = said;
  } else if (report.chosen == LinkTransport::kRdma) {
    report.chosen_reason = "RDMA comes before TCP";
  } else {
    report.chosen_reason =
        why_not(LinkTransport::kRdma).value_or("nothing else works between the two");
  }
}

asio::awaitable<Result<LinkReport>> Probe::run() {
  if (options_.sizes.empty()) {
    co_return Error{ErrorCode::kInvalidArgument, "there is no size of messages to measure"};
  }
  for (const std::uint32_t bytes : options_.sizes) {
    if (bytes != 0 && bytes <= kProbeBytesMax) continue;
    co_return Error{ErrorCode::kInvalidArgument,
                    fmt::format("messages of {} bytes cannot be measured, need 1 to {}", bytes,
                                kProbeBytesMax)};
  }
  n_total_ = options_.transports.size() * (options_.sizes.size() + 1);
  rpc::PeerInfo self;
  self.shared_memory_host = options_.shared_memory_host;
  self.rdma_ports = options_.rdma_ports;
  RECUA_CO_ASSIGN_OR_RETURN(peer_,
                            co_await EchoPeer::connect(env_, options_.worker, std::move(self),
                                                       options_.connect_timeout, options_.control));
  LinkReport report;
  report.address = options_.worker.to_string();
  report.name = peer_->info().name;
  report.software_version = peer_->info().software_version;
  for (const LinkTransport transport : options_.transports) {
    TransportReport& entry = report.transports.emplace_back();
    entry.transport = transport;
    RECUA_CO_RETURN_IF_ERROR(co_await measure(entry));
  }
  RECUA_CO_RETURN_IF_ERROR(co_await choose(report));
  co_return report;
}

}  // namespace

std::string_view to_string(LinkTransport transport) {
  switch (transport) {
    case LinkTransport::kSharedMemory:
      return "shared memory";
    case LinkTransport::kRdma:
      return "rdma";
    case LinkTransport::kTcp:
      break;
  }
  return "tcp";
}

LinkTransport transport_of(std::string_view description) {
  for (const LinkTransport transport : {LinkTransport::kSharedMemory, LinkTransport::kRdma}) {
    if (description.starts_with(to_string(transport))) return transport;
  }
  return LinkTransport::kTcp;
}

std::string_view reason_of(std::string_view description) {
  constexpr std::string_view kBecause = "because ";
  const std::size_t at = description.find(kBecause);
  return at == std::string_view::npos ? std::string_view{}
                                      : description.substr(at + kBecause.size());
}

net::Duration quantile(std::vector<net::Duration>& values, double q) {
  const auto rank = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size())));
  const std::size_t index = std::clamp<std::size_t>(rank, 1, values.size()) - 1;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(index);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

asio::awaitable<Result<LinkReport>> probe_link(net::Env env, ProbeOptions options,
                                               ProbeProgress progress) {
  Probe probe(std::move(env), std::move(options), std::move(progress));
  Result<LinkReport> report = co_await probe.run();
  co_return report;
}

}  // namespace recua::cluster
