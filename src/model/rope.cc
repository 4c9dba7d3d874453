#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace recua::model {
namespace {

// The (fractional) pair index that turns `rotations` times within the original context:
//   L * theta^(-2j/d) = 2 pi r   =>   j = d * ln(L / (2 pi r)) / (2 ln theta).
double pair_with_rotations(const HyperParams& hp, double rotations) {
  const double n_ctx = hp.rope_scaling.original_n_ctx;
  return hp.rope_dim * std::log(n_ctx / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(static_cast<double>(hp.rope_theta)));
}

}  // namespace

RopeFrequencies rope_frequencies(const HyperParams& hp, std::span<const float> divisors) {
  const RopeScaling& scaling = hp.rope_scaling;
  const std::size_t n_pairs = hp.rope_dim / 2;
  RECUA_CHECK(divisors.empty() || divisors.size() == n_pairs);
  const double factor = scaling.factor;
  const bool yarn = scaling.kind == RopeScaling::Kind::kYarn;
  double low = 0.0;
  double high = 0.0;
  RopeFrequencies out;
  if (yarn) {
    low = std::max(0.0, std::floor(pair_with_rotations(hp, scaling.beta_fast)));
    high = std::min(hp.rope_dim - 1.0, std::ceil(pair_with_rotations(hp, scaling.beta_slow)));
    out.magnitude = scaling.attn_factor;
    if (scaling.ext_factor != 0.0F)
      out.magnitude *= static_cast<float>(1.0 + 0.1 * std::log(factor));
  }
  out.inv_freq.resize(n_pairs);
  for (std::size_t j = 0; j < n_pairs; ++j) {
    const double pair = static_cast<double>(j);
    double extrapolated = std::pow(static_cast<double>(hp.rope_theta), -2.0 * pair / hp.rope_dim);
    if (!divisors.empty()) extrapolated /= static_cast<double>(divisors[j]);
    const double interpolated = extrapolated / factor;
    // Fast pairs (before low) keep their frequency, slow ones (after high) are stretched.
    double kept = 0.0;
    if (yarn) {
      const double ramp = std::clamp((pair - low) / std::max(0.001, high - low), 0.0, 1.0);
      kept = (1.0 - ramp) * static_cast<double>(scaling.ext_factor);
    }
    out.inv_freq[j] = static_cast<float>(interpolated * (1.0 - kept) + extrapolated * kept);
  }
  return out;
}

}  // namespace recua::model
