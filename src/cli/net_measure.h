#pragma once
/// `recua net test`, a subcommand of `recua net`.

#include "cli/app.h"

namespace recua::cli {

void register_net_test(CLI::App& net, int& exit_code);

}  // namespace recua::cli
