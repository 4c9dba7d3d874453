// recua net: what the network between machines can do.
#include <cstdint>
#include <memory>
#include <optional>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/net_devices.h"
#include "cli/net_measure.h"
#include "net/verbs/ibv_provider.h"

namespace recua::cli {
namespace {

std::optional<std::uint64_t> locked_bytes_max() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return {};
  return limit.rlim_cur;
}

int show_devices(bool json) {
  const auto provider = net::verbs::make_ibv_provider();
  const auto survey = survey_devices(*provider, net::verbs::built_with_verbs(), locked_bytes_max());
  if (!survey.ok()) return report(survey.error());
  const auto written = write_output(json ? devices_json(*survey) : devices_text(*survey));
  return written.ok() ? kExitOk : report(written.error());
}

void register_net_devices(CLI::App& net, int& exit_code) {
  auto* const sub = net.add_subcommand(
      "devices", "Show RDMA devices, their ports and addresses, and which are used");
  const auto json = std::make_shared<bool>(false);
  sub->add_flag("--json", *json, "Print one JSON object");
  sub->footer("Examples:\n  recua net devices\n  recua net devices --json");
  sub->callback([json, &exit_code] { exit_code = show_devices(*json); });
}

}  // namespace

void register_net(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("net", "Look at RDMA devices, measure links to workers");
  sub->require_subcommand(0, 1);
  sub->footer(
      "Examples:\n"
      "  recua net devices\n"
      "  recua net test box1:7500\n"
      "  recua net <subcommand> --help");
  register_net_devices(*sub, exit_code);
  register_net_test(*sub, exit_code);
  sub->callback([sub, &exit_code] {
    if (!sub->get_subcommands().empty()) return;
    fmt::print("{}", sub->help("recua"));
    exit_code = kExitUsage;
  });
}

}  // namespace recua::cli
