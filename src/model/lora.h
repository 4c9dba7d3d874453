#pragma once
/// Adapters: files that change some matrices of a model by products of two narrow ones,
///   W x  becomes  W x + scale * alpha / rank * B (A x).
///
/// File: a GGUF file with general.type "adapter", adapter.type "lora", general.architecture as the
/// model's, adapter.lora.alpha (absent or 0: the factor is scale alone), and for each adapted
/// matrix NAME ("blk.3.attn_q.weight") two tensors, fastest dimension first as the file lists them:
///   NAME.lora_a [n_in, rank], NAME.lora_b [rank, n_out], of any type, quantized ones too.
/// An adapter becomes part of the model file in memory, as one more shard with the factor in B and
/// everything in F32. So whatever reads a model's tensors (a slice, a plan, workers that are sent
/// what they lack) has the adapter's too; the file's name has a hash of its bytes.
/// Source: Hu et al. 2021; the layout is that of llama.cpp's adapters.

#include <array>
#include <cstddef>
#include <filesystem>
#include <string_view>

#include "base/result.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"

namespace recua::model {

inline constexpr std::string_view kLoraA = ".lora_a";
inline constexpr std::string_view kLoraB = ".lora_b";
inline constexpr std::size_t kLoraRankMax = 8192;
/// The matrices of a layer that can be adapted: their names are "blk.N.", one of these, ".weight".
inline constexpr std::array<std::string_view, 7> kLoraMatrices = {
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};

/// Reads an adapter, checks it against the model and adds it to the model's file.
/// kNotFound, kIo: the adapter. kCorrupt: no adapter, or one that does not fit: a tensor without
/// its other half, another shape or rank, numbers that are not finite, a matrix that the model does
/// not have or that has more than 2 dimensions, another architecture. kUnsupported: it changes what
/// recua does not adapt (embeddings, the output matrix, experts, norms), or the model has an
/// adapter's tensors already. Each names the adapter's file and the key or tensor.
Result<void> add_lora(gguf::GgufFile& model, const HyperParams& hp,
                      const std::filesystem::path& adapter, float scale);

/// Whether there are an adapter's tensors among the model's.
[[nodiscard]] bool has_lora(const gguf::GgufFile& model);

}  // namespace recua::model
