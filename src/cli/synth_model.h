#pragma once
/// Writes a model of a given shape with random weights: for speed tests and demonstrations.
///
/// The weights are normal numbers of a size that keeps activations and logits near 1, without
/// denormals, quantized like a real model of that type. So that gigabytes take seconds, the rows of
/// a tensor are put together from the blocks of a pool of random rows. The vocabulary is
/// SentencePiece with byte fallback, filled up with pronounceable words: any text can be a prompt,
/// and what comes out is printable noise. The same spec gives the same file.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "cli/quantize_mix.h"

namespace recua::cli {

struct SynthSpec {
  std::string arch = "llama";  // llama, qwen2, qwen3, qwen3moe
  std::uint32_t n_layers = 16;
  std::uint32_t hidden_size = 2048;
  std::uint32_t ffn_size = 8192;  // Of each expert, in a model with experts.
  std::uint32_t n_heads = 32;
  std::uint32_t n_kv_heads = 8;
  std::uint32_t head_dim = 0;  // 0: hidden_size / n_heads.
  std::uint32_t vocab_size = 32000;
  std::uint32_t n_ctx = 4096;
  std::uint32_t n_experts = 0;
  std::uint32_t n_experts_used = 2;
  double rope_theta = 10000.0;
  bool tied = false;  // No output.weight of its own.
  std::uint64_t seed = 1;
};

/// Specials, the 256 bytes and a word mark.
inline constexpr std::uint32_t kSynthVocabMin = 260;

/// kInvalidArgument: names the flag of `recua synth`, its value and what would be right.
Result<void> check_spec(const SynthSpec& spec);

struct SynthResult {
  std::uint64_t n_weights = 0;
  std::uint64_t n_bytes = 0;  // Of the whole file.
};

/// done and total count bytes of the output.
using SynthProgress =
    std::function<void(std::uint64_t done, std::uint64_t total, std::string_view tensor_name)>;

/// spec has been checked. Memory: about 32 MB and the vocabulary. kIo: names the output.
Result<SynthResult> write_synth_model(const SynthSpec& spec, const QuantizeMix& mix,
                                      const std::filesystem::path& path,
                                      const SynthProgress& progress = {});

}  // namespace recua::cli
