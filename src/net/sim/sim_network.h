#pragma once
/// SimNetwork: hosts with names, streams between them with random delay and a bounded window, and
/// every fault that the cluster must survive. All on one SimLoop.
///
/// Bytes of one connection arrive in order. Delays are uniform in [delay_min, delay_max], from the
/// seed. What silence() or partition() holds back is delivered when it ends, as TCP would send it
/// again.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "net/connection.h"
#include "net/sim/sim_loop.h"

namespace recua::net {

struct SimOptions {
  std::uint64_t seed = 1;
  Duration delay_min = std::chrono::microseconds(10);
  Duration delay_max = std::chrono::microseconds(200);
  std::size_t window_bytes = 64 * 1024;   // Most bytes sent and not yet read, per direction.
  std::size_t segment_bytes = 16 * 1024;  // Most bytes that arrive together.
};

struct SimAcceptQueue;
struct SimLink;

class SimNetwork {
 public:
  SimNetwork(SimLoop& loop, const SimOptions& options);
  ~SimNetwork();

  /// What the host's processes see as their network. Made on first use. Port 0 gives a free port.
  Network& host(const std::string& name);
  /// A ready Env for a process on that host.
  Env env(const std::string& host_name);

  // Faults. A host or pair that does not exist is fine.
  /// Breaks every connection between two hosts: both ends see kUnavailable.
  void cut(const std::string& a, const std::string& b);
  /// Breaks every connection of a host and closes its listeners: a process that was killed.
  void kill(const std::string& name);
  /// Nothing leaves or reaches the host, and nobody gets an error.
  void silence(const std::string& name, bool on = true);
  /// The same between two hosts.
  void partition(const std::string& a, const std::string& b, bool on = true);
  /// Connecting to the host fails at once.
  void refuse(const std::string& name, bool on = true);

  // For the inside of net/sim.
  [[nodiscard]] SimLoop& loop() { return loop_; }
  [[nodiscard]] const SimOptions& options() const { return options_; }
  [[nodiscard]] bool blocked(const std::string& a, const std::string& b) const;
  [[nodiscard]] Duration random_delay();

 private:
  friend class SimHost;

  std::shared_ptr<SimLink> open_link(const std::string& from, const Endpoint& to);
  void release_held();

  SimLoop& loop_;
  SimOptions options_;
  Rng rng_;
  std::map<std::string, std::unique_ptr<Network>> hosts_;
  std::map<std::pair<std::string, std::uint16_t>, std::shared_ptr<SimAcceptQueue>> listeners_;
  std::vector<std::weak_ptr<SimLink>> links_;
  std::set<std::string> silenced_;
  std::set<std::string> refusing_;
  std::set<std::pair<std::string, std::string>> partitioned_;
  std::uint16_t next_port_ = 40000;
};

}  // namespace recua::net
