#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/build_info.h"
#include "cli/commands.h"
#include "sys/cpu_features.h"

namespace recua::cli {

void register_version(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("version", "Print which recua this is");
  const auto json = std::make_shared<bool>(false);
  sub->add_flag("--json", *json, "Print one JSON object");
  sub->footer("Examples:\n  recua version\n  recua version --json");
  sub->callback([json, &exit_code] {
    exit_code = kExitOk;
    if (!*json) {
      fmt::print("{}\nrdma: {}\ntopology: {}\n", version_text(), rdma_text(), topology_text());
      return;
    }
    nlohmann::ordered_json out;
    out["version"] = version();
    out["build_commit"] = build_commit();
    out["instruction_set"] = sys::to_string(sys::supported_instruction_sets().back());
    out["cpu"] = cpu_name();
    out["rdma"] = rdma_text();
    out["topology"] = topology_text();
    fmt::print("{}\n", out.dump());
  });
}

}  // namespace recua::cli
