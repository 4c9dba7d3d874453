#pragma once
/// Survey: has workers measure themselves and the links between them, for a plan.
///
/// Workers of one host take turns, those of different hosts measure at the same time. What cannot
/// be measured (a worker is at work, too old, or lost) is left out and said, not an error.
/// Threads: the loop's.

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/awaitable.hpp>

#include "base/result.h"
#include "cluster/measurements.h"
#include "cluster/measuring.h"
#include "net/connection.h"
#include "rpc/control.h"

namespace recua::cluster {

/// Beyond so many workers the links between them are not measured: there are too many pairs.
inline constexpr std::size_t kSurveyedLinksWorkersMax = 16;

struct SurveyOptions {
  std::vector<net::Endpoint> endpoints = {};
  std::vector<OfferedWorker> workers = {};  // The same ones.
  std::string own_host = {};                // Whose workers' speed is known already.
  SpeedRequest speed = {};
  std::vector<LinkTransport> transports = {};
  net::Duration connect_timeout = std::chrono::seconds(10);
  rpc::ControlOptions control = {};
};

struct Survey {
  std::vector<std::optional<MachineSpeed>> speeds = {};  // By worker; none for the own host's.
  std::map<std::string, MachineSpeed> hosts = {};        // Of all threads of a host's workers.
  std::map<std::pair<std::size_t, std::size_t>, LinkSpec> links = {};  // The smaller index first.
  std::vector<std::string> notes = {};                                 // What could not be done.

  [[nodiscard]] std::size_t n_speeds() const {
    return static_cast<std::size_t>(
        std::ranges::count_if(speeds, [](const auto& speed) { return speed.has_value(); }));
  }
};

boost::asio::awaitable<Survey> survey_workers(net::Env env, SurveyOptions options);

}  // namespace recua::cluster
