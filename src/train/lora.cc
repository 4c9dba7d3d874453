#include "train/lora.h"

#include <algorithm>
#include <array>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/check.h"
#include "model/lora.h"

namespace recua::train {
namespace {

// As they stand in model::kLoraMatrices.
constexpr std::array<std::string_view, 7> kPeftNames = {
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
static_assert(kPeftNames.size() == model::kLoraMatrices.size());

// out = scale * x a^T.
void project(Team& team, const LinearShape& shape, const float* x, const LoraPair& pair,
             std::span<float> out) {
  linear(team, {shape.n_rows, shape.n_in, pair.rank}, x, pair.a, out.data());
  for (float& value : out) value *= pair.scale;
}

struct Scratch {
  std::span<float> projected, d_projected;  // [n_rows, rank]
};

Scratch divide(std::span<float> scratch, const LinearShape& shape, const LoraPair& pair) {
  const std::size_t n = shape.n_rows * pair.rank;
  RECUA_CHECK(scratch.size() >= 2 * n);
  return {.projected = scratch.first(n), .d_projected = scratch.subspan(n, n)};
}

}  // namespace

Result<std::vector<std::string>> parse_lora_targets(std::string_view text) {
  std::set<std::size_t> chosen;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    const std::string_view name = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (name == "all") {
      for (std::size_t i = 0; i < kPeftNames.size(); ++i) chosen.insert(i);
      continue;
    }
    const auto find = [name](const auto& names) {
      return static_cast<std::size_t>(std::ranges::find(names, name) - names.begin());
    };
    const std::size_t i = std::min(find(model::kLoraMatrices), find(kPeftNames));
    if (i == kPeftNames.size()) {
      return Error{
          ErrorCode::kInvalidArgument,
          fmt::format("there is no matrix '{}' to adapt; there are all, or any of {} (or "
                      "{})",
                      name, fmt::join(model::kLoraMatrices, ","), fmt::join(kPeftNames, ","))};
    }
    chosen.insert(i);
  }
  if (chosen.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("no matrix to adapt is named; there are all, or any of {}",
                             fmt::join(model::kLoraMatrices, ","))};
  }
  std::vector<std::string> out;
  for (const std::size_t i : chosen) out.emplace_back(model::kLoraMatrices[i]);
  return out;
}

void lora_forward(Team& team, const LinearShape& shape, const float* x, const LoraPair& pair,
                  float* y, std::span<float> scratch) {
  const Scratch s = divide(scratch, shape, pair);
  project(team, shape, x, pair, s.projected);
  team.gemm({.a = {.data = s.projected.data(), .stride = pair.rank},
             .b = {.data = pair.b, .stride = pair.rank, .transposed = true},
             .c = y,
             .c_stride = shape.n_out,
             .m = shape.n_rows,
             .n = shape.n_out,
             .k = pair.rank,
             .accumulate = true});
}

// With u = scale x a^T: db = dy^T u, du = dy b, da = scale du^T x, dx += scale du a.
void lora_backward(Team& team, const LinearShape& shape, const float* dy, const float* x,
                   const LoraPair& pair, float* dx, const LoraGradients& gradients,
                   std::span<float> scratch) {
  const Scratch s = divide(scratch, shape, pair);
  const LinearShape up{shape.n_rows, pair.rank, shape.n_out};
  const LinearShape down{shape.n_rows, shape.n_in, pair.rank};
  project(team, shape, x, pair, s.projected);
  linear_backward_weight(team, up, dy, s.projected.data(), gradients.db);
  linear_backward_input(team, up, dy, pair.b, s.d_projected.data(), false);
  for (float& value : s.d_projected) value *= pair.scale;
  linear_backward_weight(team, down, s.d_projected.data(), x, gradients.da);
  linear_backward_input(team, down, s.d_projected.data(), pair.a, dx, true);
}

}  // namespace recua::train
