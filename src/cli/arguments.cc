#include "cli/arguments.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

#include <fmt/format.h>

namespace recua::cli {
namespace {

struct Alias {
  std::string_view short_form;
  std::string_view long_form;
};

constexpr std::array kAliases = {
    Alias{"-ub", "--ubatch-size"},      Alias{"-ctk", "--cache-type-k"},
    Alias{"-ctv", "--cache-type-v"},    Alias{"-pg", "--prompt-gen"},
    Alias{"-np", "--parallel"},         Alias{"-ts", "--split"},
    Alias{"--tensor-split", "--split"}, Alias{"-nr", "--no-repack"},
};

struct Refusal {
  std::string_view flag;
  std::string_view why;
};

constexpr std::array kRefusals = {
    Refusal{"-ngl", "layers are spread with --workers or --local-workers, not to a GPU"},
    Refusal{"--n-gpu-layers", "layers are spread with --workers or --local-workers, not to a GPU"},
    Refusal{"--gpu-layers", "layers are spread with --workers or --local-workers, not to a GPU"},
    Refusal{"--rpc", "use --workers HOST:PORT,..."},
};

bool takes_text(std::string_view flag) { return flag == "-p" || flag == "--prompt"; }

/// "--flag=value" is compared by its flag.
std::string_view flag_of(std::string_view argument) {
  return argument.substr(0, argument.find('='));
}

}  // namespace

Result<std::vector<std::string>> normalize_arguments(std::span<const char* const> arguments) {
  std::vector<std::string> out;
  out.reserve(arguments.size());
  bool is_text = false;
  for (const std::string_view argument : arguments) {
    const std::string_view flag = flag_of(argument);
    if (is_text || !flag.starts_with('-')) {
      out.emplace_back(argument);
      is_text = false;
      continue;
    }
    for (const Refusal& refusal : kRefusals) {
      if (flag != refusal.flag) continue;
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("{} is not supported: {}", flag, refusal.why)};
    }
    const auto* const alias =
        std::find_if(kAliases.begin(), kAliases.end(),
                     [flag](const Alias& candidate) { return candidate.short_form == flag; });
    if (alias == kAliases.end()) {
      out.emplace_back(argument);
    } else {
      out.push_back(fmt::format("{}{}", alias->long_form, argument.substr(flag.size())));
    }
    is_text = takes_text(argument);
  }
  return out;
}

namespace {

/// Optimal string alignment distance (Damerau 1964), three rolling rows.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> previous(b.size() + 1);
  std::vector<std::size_t> current(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      current[j] = std::min({replace, previous[j] + 1, current[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        current[j] = std::min(current[j], before[j - 2] + 1);
    }
    std::swap(before, previous);
    std::swap(previous, current);
  }
  return previous[b.size()];
}

}  // namespace

std::string_view nearest(std::string_view word, std::span<const std::string> candidates) {
  // A third of the word may be wrong: "promt" means "prompt", "xyz" means nothing.
  std::size_t best = std::max<std::size_t>(1, word.size() / 3) + 1;
  std::string_view found;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance >= best) continue;
    best = distance;
    found = candidate;
  }
  return found;
}

}  // namespace recua::cli
