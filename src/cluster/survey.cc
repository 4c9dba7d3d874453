#include "cluster/survey.h"

#include <algorithm>
#include <memory>
#include <set>

#include <fmt/format.h>

#include "base/check.h"
#include "cluster/measure_wire.h"
#include "cluster/run_all.h"
#include "rpc/handshake.h"

namespace recua::cluster {
namespace {

namespace asio = boost::asio;
using Task = asio::awaitable<Result<void>>;

/// Two seconds when nothing is remembered, more on a machine that others use too.
constexpr net::Duration kSpeedTimeout = std::chrono::minutes(1);
constexpr net::Duration kLinkTimeout = std::chrono::seconds(30);

class Surveyor {
 public:
  Surveyor(net::Env env, SurveyOptions options)
      : env_(std::move(env)), options_(std::move(options)), peers_(options_.workers.size()) {}

  asio::awaitable<Survey> run();

 private:
  struct Peer {
    std::unique_ptr<rpc::ControlConnection> control;  // None: it cannot be asked.
  };

  /// All at the same time. What goes wrong in one is a note.
  asio::awaitable<void> together(std::vector<Task> tasks) {
    const Result<void> done = co_await run_all(env_.executor, std::move(tasks));
    RECUA_CHECK(done.ok());
  }
  Task connect(std::size_t w);
  Task speeds_of_host(std::vector<std::size_t> workers);
  asio::awaitable<Result<MachineSpeed>> speed(std::size_t w, std::uint32_t n_threads);
  Task link(std::size_t a, std::size_t b);
  asio::awaitable<void> all_links();
  /// Workers without a host are each a host of its own.
  [[nodiscard]] std::string host_of(std::size_t w) const {
    const OfferedWorker& worker = options_.workers[w];
    return worker.host.empty() ? worker.name : worker.host;
  }
  void note(const std::string& what, const Error& error) {
    survey_.notes.push_back(fmt::format("{}: {}", what, error.message));
  }

  net::Env env_;
  SurveyOptions options_;
  std::vector<Peer> peers_;
  Survey survey_;
};

Task Surveyor::connect(std::size_t w) {
  const std::string& name = options_.workers[w].name;
  auto connection = co_await env_.network->connect(options_.endpoints[w], options_.connect_timeout);
  if (!connection.ok()) {
    note("worker " + name, connection.error());
    co_return ok();
  }
  rpc::PeerInfo self;
  self.name = "planner";
  self.software_version = RECUA_VERSION;
  self.features.push_back(static_cast<std::uint32_t>(rpc::Feature::kMeasure));
  const Result<rpc::PeerInfo> info =
      co_await rpc::client_handshake(env_, **connection, self, options_.connect_timeout);
  if (!info.ok()) {
    note("worker " + name, info.error());
    co_return ok();
  }
  if (!info->has(rpc::Feature::kMeasure)) {
    survey_.notes.push_back(
        fmt::format("worker {} runs recua {}, which does not measure itself: update it (this is "
                    "{})",
                    name, info->software_version, RECUA_VERSION));
    co_return ok();
  }
  peers_[w].control = std::make_unique<rpc::ControlConnection>(
      env_, std::move(*connection), options_.control, rpc::ControlHandlers{});
  co_return ok();
}

asio::awaitable<Result<MachineSpeed>> Surveyor::speed(std::size_t w, std::uint32_t n_threads) {
  SpeedRequest request = options_.speed;
  request.n_threads = n_threads;
  wire::ControlMessage message;
  to_wire(request, *message.mutable_measure_speed());
  RECUA_CO_ASSIGN_OR_RETURN(const wire::ControlMessage reply,
                            co_await peers_[w].control->call(std::move(message), kSpeedTimeout));
  if (!reply.has_speed_measured()) {
    co_return Error{ErrorCode::kProtocol, "the reply to measure_speed is something else"};
  }
  co_return from_wire(reply.speed_measured(), request);
}

Task Surveyor::speeds_of_host(std::vector<std::size_t> workers) {
  std::uint32_t n_threads = 0;
  for (const std::size_t w : workers) {
    n_threads += options_.workers[w].n_threads;
    if (peers_[w].control == nullptr) continue;
    Result<MachineSpeed> measured = co_await speed(w, 0);
    if (measured.ok()) {
      survey_.speeds[w] = std::move(*measured);
    } else {
      note("the speed of worker " + options_.workers[w].name, measured.error());
    }
  }
  const std::size_t any = workers.front();
  if (workers.size() < 2 || !survey_.speeds[any]) co_return ok();
  Result<MachineSpeed> together = co_await speed(any, n_threads);
  if (together.ok()) {
    survey_.hosts.emplace(host_of(any), std::move(*together));
  } else {
    note("the host of worker " + options_.workers[any].name, together.error());
  }
  co_return ok();
}

Task Surveyor::link(std::size_t a, std::size_t b) {
  wire::ControlMessage message;
  to_wire(LinkRequest{.peer = options_.endpoints[b], .transports = options_.transports},
          *message.mutable_measure_link());
  const Result<wire::ControlMessage> reply =
      co_await peers_[a].control->call(std::move(message), kLinkTimeout);
  Result<LinkSpec> measured =
      Error{ErrorCode::kProtocol, "the reply to measure_link is something else"};
  if (!reply.ok()) {
    measured = reply.error();
  } else if (reply->has_link_measured()) {
    measured = from_wire(reply->link_measured());
  }
  if (measured.ok()) {
    survey_.links.emplace(std::pair(a, b), *measured);
  } else {
    note(fmt::format("the link from worker {} to {}", options_.workers[a].name,
                     options_.workers[b].name),
         measured.error());
  }
  co_return ok();
}

/// In rounds in which no host has more than one link.
asio::awaitable<void> Surveyor::all_links() {
  std::vector<std::pair<std::size_t, std::size_t>> waiting;
  for (std::size_t a = 0; a < peers_.size(); ++a) {
    for (std::size_t b = a + 1; b < peers_.size(); ++b) {
      if (peers_[a].control != nullptr && peers_[b].control != nullptr) waiting.emplace_back(a, b);
    }
  }
  while (!waiting.empty()) {
    std::set<std::string> busy;
    std::vector<Task> round;
    std::erase_if(waiting, [&](const auto& pair) {
      const std::string first = host_of(pair.first);
      const std::string second = host_of(pair.second);
      if (busy.contains(first) || busy.contains(second)) return false;
      busy.insert({first, second});
      round.push_back(link(pair.first, pair.second));
      return true;
    });
    co_await together(std::move(round));
  }
}

asio::awaitable<Survey> Surveyor::run() {
  survey_.speeds.resize(peers_.size());
  std::vector<Task> connects;
  for (std::size_t w = 0; w < peers_.size(); ++w) connects.push_back(connect(w));
  co_await together(std::move(connects));
  std::map<std::string, std::vector<std::size_t>> hosts;
  for (std::size_t w = 0; w < peers_.size(); ++w) {
    if (host_of(w) != options_.own_host) hosts[host_of(w)].push_back(w);
  }
  std::vector<Task> speeds;
  for (const auto& [host, workers] : hosts) speeds.push_back(speeds_of_host(workers));
  co_await together(std::move(speeds));
  if (peers_.size() <= kSurveyedLinksWorkersMax) co_await all_links();
  for (Peer& peer : peers_) {
    if (peer.control != nullptr) peer.control->close();
  }
  co_return std::move(survey_);
}

}  // namespace

asio::awaitable<Survey> survey_workers(net::Env env, SurveyOptions options) {
  Surveyor surveyor(std::move(env), std::move(options));
  Survey survey = co_await surveyor.run();
  co_return survey;
}

}  // namespace recua::cluster
