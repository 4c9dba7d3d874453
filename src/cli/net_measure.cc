// recua net test: measures the link from here to a running worker.
#include "cli/net_measure.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <boost/asio/io_context.hpp>
#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/link_flags.h"
#include "cli/net_report.h"
#include "cli/progress.h"
#include "cli/run_loop.h"
#include "cluster/link_probe.h"
#include "net/real_clock.h"
#include "net/tcp/tcp_network.h"

namespace recua::cli {
namespace {

constexpr double kSecondsMax = 60.0;

struct MeasureFlags {
  std::string worker;
  std::string sizes = "64,1024,8192,65536,1048576";
  double seconds = 0.5;
  bool json = false;
  LinkFlags links;
};

Result<cluster::ProbeOptions> probe_options(const MeasureFlags& flags) {
  cluster::ProbeOptions options;
  if (flags.worker.empty()) return missing("HOST[:PORT]", "the worker to measure, as box1:7500");
  RECUA_ASSIGN_OR_RETURN(options.worker, net::Endpoint::parse(flags.worker, kDefaultWorkerPort));
  RECUA_ASSIGN_OR_RETURN(options.sizes,
                         parse_counts("--bytes", flags.sizes, cluster::kProbeBytesMax));
  if (std::find(options.sizes.begin(), options.sizes.end(), 0U) != options.sizes.end()) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("--bytes is '{}', but an empty message has no rows to measure", flags.sizes)};
  }
  if (!(flags.seconds > 0.0) || flags.seconds > kSecondsMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("--seconds is {}, need more than 0 and at most {}", flags.seconds,
                             kSecondsMax)};
  }
  options.duration =
      std::chrono::duration_cast<net::Duration>(std::chrono::duration<double>(flags.seconds));
  RECUA_ASSIGN_OR_RETURN(options.transports, parse_link_transports(flags.links.transports));
  return options;
}

int measure(const MeasureFlags& flags) {
  auto options = probe_options(flags);
  if (!options.ok()) return report(options.error());
  // What is measured is asked for one by one; here it is only about what this machine can do. A
  // machine without RDMA need not be warned of: the table says so.
  LinkFlags all = flags.links;
  if (all.rdma_devices.empty() && !all.rdma_gid) all.transports = "auto";
  const auto links = make_link_setup(all);
  if (!links.ok()) return report(links.error());
  options->policy = &(*links)->policy;
  options->shared_memory_host = (*links)->shared_memory_host;
  options->rdma_ports = (*links)->rdma_ports;

  boost::asio::io_context loop;  // No hint of one thread, for run_one(): see cluster/offload.cc.
  net::RealClock clock;
  net::TcpNetwork network(loop.get_executor());
  net::Env env = real_env(loop, clock, network);
  env.run_one = [&loop] { return loop.run_one() > 0; };  // One link at a time is measured here.
  ProgressBar bar("measuring", ProgressBar::Unit::kCount, std::chrono::milliseconds(300));
  const auto measured = run_on(
      loop,
      cluster::probe_link(env, *options,
                          [&bar](std::size_t n_done, std::size_t n_total, const std::string& what) {
                            bar.update(n_done, n_total, what);
                          }));
  bar.finish();
  if (!measured.ok()) return report(measured.error());
  const auto written = write_output(flags.json ? link_json(*measured) : link_text(*measured));
  if (!written.ok()) return report(written.error());
  const bool any = std::any_of(measured->transports.begin(), measured->transports.end(),
                               [](const auto& entry) { return entry.available; });
  return any ? kExitOk : kExitFailure;
}

}  // namespace

void register_net_test(CLI::App& net, int& exit_code) {
  auto* const sub = net.add_subcommand(
      "test", "Measure latency and bandwidth to a running worker, over each transport");
  const auto flags = std::make_shared<MeasureFlags>();
  sub->add_option("worker", flags->worker, "A running `recua worker`")->type_name("HOST[:PORT]");
  sub->add_option("--bytes", flags->sizes, "Sizes of messages whose latency is measured")
      ->capture_default_str()
      ->type_name("N,...");
  sub->add_option("--seconds", flags->seconds, "How long each size is measured")
      ->capture_default_str()
      ->type_name("S");
  flags->links.add(*sub);
  sub->add_flag("--json", flags->json, "Print one JSON object");
  sub->footer(
      "Times are one way: half of a round trip from here to the worker and back.\n\n"
      "Examples:\n"
      "  recua net test box1\n"
      "  recua net test 10.0.0.5:7500 --transport rdma,tcp --seconds 2\n"
      "  recua net test box1 --bytes 8192,14336 --json");
  sub->callback([flags, &exit_code] { exit_code = measure(*flags); });
}

}  // namespace recua::cli
