#include "net/sim/sim_network.h"

#include <deque>

#include <fmt/format.h>

#include "net/deadline.h"
#include "net/event.h"
#include "net/sim/sim_link.h"

namespace recua::net {

/// Connections that arrived at a listener and were not accepted yet.
struct SimAcceptQueue {
  explicit SimAcceptQueue(const asio::any_io_executor& executor) : changed(executor) {}

  std::deque<std::shared_ptr<SimLink>> links;
  bool closed = false;
  Event changed;

  void close() {
    closed = true;
    for (const std::shared_ptr<SimLink>& link : links) link->close(1);
    links.clear();
    changed.notify_all();
  }
};

namespace {

class SimListener : public Listener {
 public:
  SimListener(std::shared_ptr<SimAcceptQueue> queue, Endpoint endpoint)
      : queue_(std::move(queue)), endpoint_(std::move(endpoint)) {}
  ~SimListener() override { SimListener::close(); }

  [[nodiscard]] const Endpoint& endpoint() const override { return endpoint_; }
  asio::awaitable<Result<std::unique_ptr<Connection>>> accept() override {
    return do_accept(queue_, endpoint_.to_string());
  }
  void close() override {
    if (!queue_->closed) queue_->close();
  }

 private:
  static asio::awaitable<Result<std::unique_ptr<Connection>>> do_accept(
      std::shared_ptr<SimAcceptQueue> queue, std::string where) {
    while (queue->links.empty()) {
      if (queue->closed)
        co_return Error{ErrorCode::kCancelled, fmt::format("no longer listening on {}", where)};
      co_await queue->changed.wait();
    }
    std::shared_ptr<SimLink> link = std::move(queue->links.front());
    queue->links.pop_front();
    co_return make_sim_connection(std::move(link), 1);
  }

  std::shared_ptr<SimAcceptQueue> queue_;
  Endpoint endpoint_;
};

std::pair<std::string, std::string> ordered(const std::string& a, const std::string& b) {
  return a < b ? std::pair(a, b) : std::pair(b, a);
}

}  // namespace

/// The network as one host sees it.
class SimHost : public Network {
 public:
  SimHost(SimNetwork& network, std::string name) : network_(network), name_(std::move(name)) {}

  asio::awaitable<Result<std::unique_ptr<Connection>>> connect(Endpoint endpoint,
                                                               Duration timeout) override {
    SimLoop& loop = network_.loop();
    if (endpoint.host.empty() || endpoint.host == "localhost") endpoint.host = name_;
    const TimePoint deadline = loop.now() + timeout;
    // As TCP: an unanswered first packet is sent again after a second.
    while (true) {
      const TimePoint answer = loop.now() + network_.random_delay() + network_.random_delay();
      co_await loop.sleep_until(std::min(answer, deadline));
      if (answer <= deadline && !network_.blocked(name_, endpoint.host)) break;
      if (loop.now() < deadline)
        co_await loop.sleep_until(std::min(loop.now() + std::chrono::seconds(1), deadline));
      if (loop.now() >= deadline) {
        co_return Error{ErrorCode::kTimeout, fmt::format("no answer from {} within {}",
                                                         endpoint.to_string(), to_string(timeout))};
      }
    }
    std::shared_ptr<SimLink> link = network_.open_link(name_, endpoint);
    if (!link) {
      co_return Error{ErrorCode::kUnavailable,
                      fmt::format("{} refused the connection", endpoint.to_string())};
    }
    co_return make_sim_connection(std::move(link), 0);
  }

  Result<std::unique_ptr<Listener>> listen(const Endpoint& endpoint) override {
    Endpoint real{.host = name_, .port = endpoint.port};
    if (real.port == 0) real.port = network_.next_port_++;
    std::shared_ptr<SimAcceptQueue>& queue = network_.listeners_[{name_, real.port}];
    if (queue && !queue->closed) {
      return Error{ErrorCode::kUnavailable,
                   fmt::format("cannot listen on {}: address in use", real.to_string())};
    }
    queue = std::make_shared<SimAcceptQueue>(network_.loop().executor());
    return std::unique_ptr<Listener>(std::make_unique<SimListener>(queue, std::move(real)));
  }

 private:
  SimNetwork& network_;
  std::string name_;
};

SimNetwork::SimNetwork(SimLoop& loop, const SimOptions& options)
    : loop_(loop), options_(options), rng_(options.seed) {}

SimNetwork::~SimNetwork() {
  for (const std::weak_ptr<SimLink>& weak : links_) {
    const std::shared_ptr<SimLink> link = weak.lock();
    if (!link) continue;
    link->network = nullptr;
    for (SimPipe& pipe : link->pipes) pipe.held.clear();  // Each holds a share of its link.
  }
  for (const auto& [where, queue] : listeners_) queue->close();
}

Network& SimNetwork::host(const std::string& name) {
  std::unique_ptr<Network>& host = hosts_[name];
  if (!host) host = std::make_unique<SimHost>(*this, name);
  return *host;
}

Env SimNetwork::env(const std::string& host_name) {
  const auto rng = std::make_shared<Rng>(rng_.next());
  return Env{.executor = loop_.executor(),
             .clock = &loop_,
             .network = &host(host_name),
             .random = [rng] { return rng->next(); },
             .spin = Duration::zero()};
}

std::shared_ptr<SimLink> SimNetwork::open_link(const std::string& from, const Endpoint& to) {
  const auto found = listeners_.find({to.host, to.port});
  if (found == listeners_.end() || found->second->closed || refusing_.contains(to.host))
    return nullptr;
  const std::string back = Endpoint{.host = from, .port = next_port_++}.to_string();
  const auto link =
      std::make_shared<SimLink>(*this, loop_.executor(), std::array<std::string, 2>{from, to.host},
                                std::array<std::string, 2>{to.to_string(), back});
  std::erase_if(links_, [](const std::weak_ptr<SimLink>& weak) { return weak.expired(); });
  links_.push_back(link);
  found->second->links.push_back(link);
  found->second->changed.notify_all();
  return link;
}

void SimNetwork::cut(const std::string& a, const std::string& b) {
  for (const std::weak_ptr<SimLink>& weak : links_) {
    const std::shared_ptr<SimLink> link = weak.lock();
    if (link && ordered(link->hosts[0], link->hosts[1]) == ordered(a, b))
      link->break_off("the link was cut");
  }
}

void SimNetwork::kill(const std::string& name) {
  for (const std::weak_ptr<SimLink>& weak : links_) {
    const std::shared_ptr<SimLink> link = weak.lock();
    if (link && (link->hosts[0] == name || link->hosts[1] == name))
      link->break_off(fmt::format("the process on {} died", name));
  }
  for (const auto& [where, queue] : listeners_) {
    if (where.first == name) queue->close();
  }
}

void SimNetwork::silence(const std::string& name, bool on) {
  if (on) {
    silenced_.insert(name);
  } else {
    silenced_.erase(name);
    release_held();
  }
}

void SimNetwork::partition(const std::string& a, const std::string& b, bool on) {
  if (on) {
    partitioned_.insert(ordered(a, b));
  } else {
    partitioned_.erase(ordered(a, b));
    release_held();
  }
}

void SimNetwork::refuse(const std::string& name, bool on) {
  if (on) {
    refusing_.insert(name);
  } else {
    refusing_.erase(name);
  }
}

bool SimNetwork::blocked(const std::string& a, const std::string& b) const {
  return silenced_.contains(a) || silenced_.contains(b) || partitioned_.contains(ordered(a, b));
}

Duration SimNetwork::random_delay() {
  const auto span = static_cast<std::uint64_t>((options_.delay_max - options_.delay_min).count());
  return options_.delay_min + Duration(static_cast<Duration::rep>(rng_.below(span + 1)));
}

void SimNetwork::release_held() {
  for (const std::weak_ptr<SimLink>& weak : links_) {
    if (const std::shared_ptr<SimLink> link = weak.lock()) link->release_held();
  }
}

}  // namespace recua::net
