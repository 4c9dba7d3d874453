#pragma once
/// The angles of rotary position embeddings: pair j of a head at position p turns by p *
/// inv_freq[j].
///
/// Source: Su et al. 2021 (RoPE); Chen et al. 2023 (linear scaling); Peng et al. 2023, "YaRN", with
/// the ramp of its published code, linear in j between whole numbers. Llama 3's scaling arrives as
/// divisors of the frequencies, one per pair (the tensor rope_freqs.weight).

#include <span>
#include <vector>

#include "model/hyperparams.h"

namespace recua::model {

struct RopeFrequencies {
  std::vector<float> inv_freq;  // [rope_dim / 2]
  float magnitude = 1.0F;       // Cosines and sines are multiplied by it (YaRN).
};

/// divisors: empty, or [rope_dim / 2].
RopeFrequencies rope_frequencies(const HyperParams& hp, std::span<const float> divisors);

}  // namespace recua::model
