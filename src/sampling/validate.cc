#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "sampling/sampler.h"

namespace recua::sampling {
namespace {

// Wider than anybody uses, narrow enough that no sum of adjusted logits overflows.
constexpr float kBiasMax = 1e6F;
constexpr float kPenaltyMax = 1e3F;
constexpr float kTemperatureMax = 1e6F;

Result<void> in_range(const char* name, float value, float low, float high) {
  if (value >= low && value <= high) return ok();
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{} is {}; expected a number from {} to {}", name, value, low, high)};
}

}  // namespace

Result<void> validate(const SamplingParams& params, std::uint32_t vocab_size) {
  RECUA_RETURN_IF_ERROR(
      in_range("temperature", params.temperature, -kTemperatureMax, kTemperatureMax));
  RECUA_RETURN_IF_ERROR(in_range("top_p", params.top_p, 0.0F, 1.0F));
  RECUA_RETURN_IF_ERROR(in_range("min_p", params.min_p, 0.0F, 1.0F));
  RECUA_RETURN_IF_ERROR(in_range("typical_p", params.typical_p, 0.0F, 1.0F));
  RECUA_RETURN_IF_ERROR(
      in_range("repeat_penalty", params.repeat_penalty, 1.0F / kPenaltyMax, kPenaltyMax));
  RECUA_RETURN_IF_ERROR(
      in_range("frequency_penalty", params.frequency_penalty, -kPenaltyMax, kPenaltyMax));
  RECUA_RETURN_IF_ERROR(
      in_range("presence_penalty", params.presence_penalty, -kPenaltyMax, kPenaltyMax));
  if (params.repeat_last_n < -1) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("repeat_last_n is {}; expected 0 (none), a count, or -1 (all tokens)",
                             params.repeat_last_n)};
  }
  const std::size_t n_biases_max = std::min<std::size_t>(kLogitBiasesMax, vocab_size);
  if (params.logit_bias.size() > n_biases_max) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("logit_bias has {} entries; at most {} can be given",
                             params.logit_bias.size(), n_biases_max)};
  }
  std::vector<TokenId> forbidden;
  for (const LogitBias& bias : params.logit_bias) {
    if (bias.id < 0 || static_cast<std::uint32_t>(bias.id) >= vocab_size) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("logit_bias names token {}; expected an id from 0 to {}", bias.id,
                               vocab_size - 1)};
    }
    const bool forbids = bias.bias == -std::numeric_limits<float>::infinity();
    if (!forbids && !(std::abs(bias.bias) <= kBiasMax)) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("logit_bias of token {} is {}; expected -infinity or a number "
                               "from {} to {}",
                               bias.id, bias.bias, -kBiasMax, kBiasMax)};
    }
    if (forbids) forbidden.push_back(bias.id);
  }
  std::sort(forbidden.begin(), forbidden.end());
  const auto distinct_end = std::unique(forbidden.begin(), forbidden.end());
  if (vocab_size > 0 && distinct_end - forbidden.begin() == std::ptrdiff_t{vocab_size}) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("the logit bias forbids every token; at least one of {} has to be "
                             "left",
                             vocab_size)};
  }
  return ok();
}

}  // namespace recua::sampling
