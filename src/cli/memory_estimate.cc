#include "cli/memory_estimate.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/units.h"
#include "kernels/activation.h"
#include "kernels/kernel_table.h"
#include "kernels/packed.h"
#include "model/slice.h"
#include "sys/cpu_features.h"

namespace recua::cli {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20U;

// Measured: a run of a model of 1 MB takes 14 MB.
constexpr std::uint64_t kProgramBytes = 12 * kMiB;
// Stacks as far as they are used, scores of attention, and the piece of file that is being packed.
constexpr std::uint64_t kThreadBytes = 2 * kMiB;
// A token's text in the file and in the tokenizer's tables.
constexpr std::uint64_t kVocabularyBytes = 160;
// Below this no context is worth suggesting.
constexpr std::uint64_t kCtxLeast = 64;

std::uint64_t packed_bytes(const gguf::TensorInfo& tensor) {
  const std::uint64_t n_matrices = tensor.n_rows() / tensor.shape[1];
  return n_matrices * kernels::n_packed_groups(tensor.type, tensor.shape[1]) *
         kernels::packed_group_bytes(tensor.type, tensor.shape[0]);
}

/// Rows of activations as the products with this tensor take them; those of 16 bits are the
/// largest.
std::uint64_t rounded_bytes(const gguf::TensorInfo& tensor, const model::HyperParams& hp,
                            std::uint64_t n_rows) {
  if (quant::traits(tensor.type).block_size == 1) return 0;
  const bool per_expert = tensor.n_dims > 2 && hp.n_experts > 0;
  const std::uint64_t n = per_expert ? n_rows * hp.n_experts_used : n_rows;
  return n * kernels::activation_row_bytes(kernels::ActivationKind::kQ16x32, tensor.shape[0]);
}

}  // namespace

Result<MemoryEstimate> estimate_memory(const gguf::GgufFile& file, const model::HyperParams& hp,
                                       const model::SliceOptions& options, std::size_t n_threads,
                                       bool repack, bool with_tokenizer) {
  RECUA_ASSIGN_OR_RETURN(const sys::InstructionSet set, sys::choose_instruction_set("auto"));
  const kernels::KernelTable& table = kernels::kernel_table(set);
  const model::Slice whole = {.layer_begin = 0, .layer_end = hp.n_layers, .n_layers = hp.n_layers};
  RECUA_ASSIGN_OR_RETURN(const model::SliceMemory slice, model::slice_memory(hp, whole, options));
  MemoryEstimate need;
  const bool tied = file.find("output.weight") == nullptr;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    if (!model::slice_needs(whole, tied, tensor.name)) continue;
    if (tensor.n_dims <= 1) {
      need.packed += tensor.n_elements * sizeof(float);
    } else if (repack && table.packed_matmul(tensor.type) != nullptr) {
      need.packed += packed_bytes(tensor);
    } else {
      need.mapped += tensor.n_bytes;
    }
    if (tensor.n_dims > 1)
      need.scratch = std::max(need.scratch, rounded_bytes(tensor, hp, options.n_ubatch));
  }
  need.scratch += n_threads * kThreadBytes;
  need.cache = slice.cache;
  need.activations = slice.activations;
  need.program = kProgramBytes + (with_tokenizer ? hp.vocab_size * kVocabularyBytes : 0);
  need.n_ctx = options.n_ctx;
  need.ctx_token = slice.cache / options.n_ctx;
  return need;
}

std::string MemoryEstimate::text() const {
  return fmt::format(
      "{}: weights {} packed and {} mapped, cache {} for a context of {}, activations {}, scratch "
      "{}, program {}",
      human_bytes(total()), human_bytes(packed), human_bytes(mapped), human_bytes(cache), n_ctx,
      human_bytes(activations), human_bytes(scratch), human_bytes(program));
}

Result<void> check_fits(const MemoryEstimate& need, std::uint64_t available) {
  if (available == 0 || need.needed() <= available) return ok();  // 0: the system does not say.
  std::string message =
      fmt::format("needs {}, which is {} more than the {} that are free", need.text(),
                  human_bytes(need.needed() - available), human_bytes(available));
  const std::uint64_t fixed = need.needed() - need.cache;
  const std::uint64_t left = available > fixed ? available - fixed : 0;
  const std::uint64_t n_ctx = need.ctx_token > 0 ? left / need.ctx_token / 32 * 32 : 0;
  if (n_ctx >= kCtxLeast) {
    message += fmt::format("; a context of {} would fit (-c {})", n_ctx, n_ctx);
  } else {
    message +=
        "; even without a cache it does not fit: take weights of fewer bits or spread it "
        "over --workers";
  }
  message += "; --no-memory-check loads it all the same";
  return Error{ErrorCode::kResourceExhausted, message};
}

}  // namespace recua::cli
