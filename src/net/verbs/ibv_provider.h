#pragma once
/// The real Provider, on libibverbs. Without libibverbs at build time it answers kUnsupported.

#include <memory>
#include <string_view>

#include "net/verbs/verbs.h"

namespace recua::net::verbs {

/// Whether this build has libibverbs.
bool built_with_verbs();
/// "libibverbs 1.14"; empty when it is not built in.
std::string_view verbs_version();
std::unique_ptr<Provider> make_ibv_provider();

}  // namespace recua::net::verbs
