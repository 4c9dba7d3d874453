#include "model/slice_runner.h"

#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "kv/paged_cache.h"
#include "model/activations.h"
#include "model/batch_tables.h"
#include "model/forward.h"
#include "model/outputs.h"
#include "model/split_outputs.h"
#include "model/weights.h"

namespace recua::model {
namespace {

// Options may come from a peer: these bound what they can make us allocate per row or page.
constexpr std::uint32_t kRowsMax = 65536;
constexpr std::uint32_t kPageTokensMax = 4096;
constexpr std::uint32_t kPagesMax = 1U << 28;

Result<void> check_option(const char* name, std::uint32_t value, std::uint32_t max) {
  if (value >= 1 && value <= max) return ok();
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("{} is {}; expected 1 to {}", name, value, max)};
}

/// The options with n_pages filled in, so that one sequence of n_ctx fits.
Result<SliceOptions> complete(SliceOptions options) {
  RECUA_RETURN_IF_ERROR(check_option("n_ctx", options.n_ctx, kCtxMax));
  RECUA_RETURN_IF_ERROR(check_option("page_tokens", options.page_tokens, kPageTokensMax));
  RECUA_RETURN_IF_ERROR(check_option("n_ubatch", options.n_ubatch, kRowsMax));
  RECUA_RETURN_IF_ERROR(check_option("n_logit_rows", options.n_logit_rows, kRowsMax));
  if (options.n_pages == 0) {
    options.n_pages = (options.n_ctx + options.page_tokens - 1) / options.page_tokens;
  }
  RECUA_RETURN_IF_ERROR(check_option("n_pages", options.n_pages, kPagesMax));
  return options;
}

Result<void> check_group(const Slice& slice, const Communicator& group) {
  if (slice.n_ranks == group.n_ranks() && slice.rank == group.rank()) return ok();
  return Error{ErrorCode::kInvalidArgument,
               fmt::format("rank {} of {} in a group whose communicator says rank {} of {}",
                           slice.rank, slice.n_ranks, group.rank(), group.n_ranks())};
}

BatchLimits batch_limits(const HyperParams& hp, const SliceOptions& options) {
  return {
      .n_rows = options.n_ubatch,
      .n_outputs = options.n_logit_rows,
      .vocab_size = hp.vocab_size,
      .tables = {
          .n_pages = options.n_pages, .page_tokens = options.page_tokens, .n_ctx = options.n_ctx}};
}

kv::KvShape cache_shape(const HyperParams& hp, const Slice& slice, const SliceOptions& options) {
  return {.n_layers = slice.layer_end - slice.layer_begin,
          .n_kv_heads = own_share(slice, hp).kv_heads.size(),
          .head_dim = hp.head_dim,
          .n_pages = options.n_pages,
          .page_tokens = options.page_tokens,
          .k_type = options.k_type,
          .v_type = options.v_type};
}

std::size_t logit_rows(const Slice& slice, const SliceOptions& options) {
  return slice.is_last() ? std::min<std::size_t>(kLogitRows, options.n_logit_rows) : 0;
}

class DeviceSliceRunner final : public SliceRunner {
 public:
  DeviceSliceRunner(compute::Device& device, const HyperParams& hp, const Slice& slice,
                    const SliceOptions& options, SliceWeights weights, kv::PagedCache cache,
                    Activations activations, Communicator& communicator)
      : device_(device),
        hp_(hp),
        slice_(slice),
        options_(options),
        weights_(std::move(weights)),
        cache_(std::move(cache)),
        activations_(std::move(activations)),
        tables_(batch_limits(hp, options)),
        forward_(device, hp_, slice_, weights_, cache_, activations_, communicator),
        split_outputs_(slice_.shares, slice_.n_ranks > 1 ? hp_.vocab_size : 0, communicator) {}

  [[nodiscard]] const Slice& slice() const override { return slice_; }
  [[nodiscard]] const SliceOptions& options() const override { return options_; }
  [[nodiscard]] std::size_t hidden_size() const override { return hp_.hidden_size; }

  Result<void> check(const StepBatch& batch, std::uint32_t n_rows_max) override {
    return tables_.check(batch, n_rows_max);
  }
  Result<void> run(const StepBatch& batch, compute::Rows input, compute::Rows output,
                   StepResult& result) override;
  void clear() override { tables_.clear(); }

 private:
  void copy_pages();
  void lay_out_rows(const StepBatch& batch);
  Result<void> make_outputs(const StepBatch& batch, StepResult& result);
  Result<StepOutput> make_output(const OutputRequest& request, std::span<const float> logits,
                                 SequenceId seq, std::uint32_t position);
  Result<StepOutput> make_output(const OutputRequest& request, const SplitOutputs::Row& row,
                                 SequenceId seq, std::uint32_t position);

  compute::Device& device_;
  const HyperParams hp_;
  const Slice slice_;
  const SliceOptions options_;
  const SliceWeights weights_;
  kv::PagedCache cache_;
  const Activations activations_;
  BatchTables tables_;
  ForwardPass forward_;
  OutputMaker outputs_;
  SplitOutputs split_outputs_;

  // The micro-batch as the operators want it, kept to keep its memory.
  std::vector<TokenId> ids_;
  std::vector<std::uint32_t> positions_;
  std::vector<std::uint64_t> slots_;
  std::vector<compute::AttentionRow> attention_rows_;
  std::vector<std::span<const std::uint32_t>> page_tables_;
  std::vector<std::uint32_t> output_rows_;
};

Result<void> DeviceSliceRunner::run(const StepBatch& batch, compute::Rows input,
                                    compute::Rows output, StepResult& result) {
  result.outputs.clear();
  RECUA_RETURN_IF_ERROR(tables_.apply(batch));
  copy_pages();
  const std::size_t n_rows = batch.n_rows();
  if (n_rows == 0) return ok();
  RECUA_CHECK(slice_.is_first() || (input.n_rows == n_rows && input.n_cols == hp_.hidden_size));
  RECUA_CHECK(slice_.is_last() || (output.n_rows == n_rows && output.n_cols == hp_.hidden_size));
  lay_out_rows(batch);
  const ForwardRows rows = {.ids = ids_,
                            .positions = positions_,
                            .slots = slots_,
                            .attention = attention_rows_,
                            .page_tables = page_tables_,
                            .output_rows = output_rows_};
  RECUA_RETURN_IF_ERROR(forward_.run_layers(rows, input, output));
  if (slice_.is_last()) {
    Result<void> made = make_outputs(batch, result);
    if (!made.ok()) result.outputs.clear();
    return made;
  }
  device_.sync();
  return ok();
}

void DeviceSliceRunner::copy_pages() {
  const std::span<const kv::PageCopy> copies = tables_.table().copies();
  if (copies.empty()) return;
  device_.sync();
  for (const kv::PageCopy& copy : copies) cache_.copy_tokens(copy.from, copy.to, copy.n_tokens);
}

void DeviceSliceRunner::lay_out_rows(const StepBatch& batch) {
  ids_.clear();
  positions_.clear();
  slots_.clear();
  attention_rows_.clear();
  page_tables_.clear();
  output_rows_.clear();
  for (const SequencePart& part : batch.parts) {
    const auto sequence = static_cast<std::uint32_t>(page_tables_.size());
    const std::span<const std::uint32_t> pages = tables_.table().find(part.seq)->pages;
    page_tables_.push_back(pages);
    ids_.insert(ids_.end(), part.tokens.begin(), part.tokens.end());
    for (std::size_t i = 0; i < part.tokens.size(); ++i) {
      const std::uint32_t position = part.position + static_cast<std::uint32_t>(i);
      positions_.push_back(position);
      attention_rows_.push_back({.sequence = sequence, .position = position});
      slots_.push_back(std::uint64_t{pages[position / options_.page_tokens]} *
                           options_.page_tokens +
                       position % options_.page_tokens);
    }
  }
  for (const OutputRequest& output : batch.outputs) output_rows_.push_back(output.row);
}

Result<void> DeviceSliceRunner::make_outputs(const StepBatch& batch, StepResult& result) {
  const std::span<const OutputRequest> requests = batch.outputs;
  result.outputs.reserve(requests.size());
  for (std::size_t begin = 0; begin < requests.size(); begin += kLogitRows) {
    const std::size_t n = std::min(kLogitRows, requests.size() - begin);
    const std::span<const OutputRequest> some = requests.subspan(begin, n);
    const compute::Rows own = forward_.own_logits(begin, n);
    device_.sync();
    bool candidates = false;
    if (slice_.n_ranks > 1) {
      RECUA_ASSIGN_OR_RETURN(candidates, split_outputs_.exchange(some, own));
    }
    compute::Rows logits;
    if (!candidates) {
      RECUA_ASSIGN_OR_RETURN(logits, forward_.gather_logits(n));
    }
    for (std::size_t i = 0; i < n; ++i) {
      const compute::AttentionRow& row = attention_rows_[some[i].row];
      const SequencePart& part = batch.parts[row.sequence];
      Result<StepOutput> output =
          candidates ? make_output(some[i], split_outputs_.row(some[i], i), part.seq, row.position)
                     : make_output(some[i], {logits.row(i), logits.n_cols}, part.seq, row.position);
      if (!output.ok()) {
        return std::move(output).error().within(
            fmt::format("sequence {}, position {}", part.seq, row.position));
      }
      result.outputs.push_back(std::move(output).value());
    }
  }
  return ok();
}

Result<StepOutput> DeviceSliceRunner::make_output(const OutputRequest& request,
                                                  std::span<const float> logits, SequenceId seq,
                                                  std::uint32_t position) {
  RECUA_ASSIGN_OR_RETURN(const LogitSummary summary, summarize(logits));
  return make_output(request, {.logits = logits, .summary = summary}, seq, position);
}

Result<StepOutput> DeviceSliceRunner::make_output(const OutputRequest& request,
                                                  const SplitOutputs::Row& row, SequenceId seq,
                                                  std::uint32_t position) {
  const std::span<const TokenId> tokens = tables_.table().find(seq)->tokens;
  return outputs_.make(request, row.logits, row.summary, tokens.first(position + std::size_t{1}));
}

}  // namespace

Result<SliceMemory> slice_memory(const HyperParams& hyperparams, const Slice& slice,
                                 const SliceOptions& options) {
  RECUA_RETURN_IF_ERROR(check_slice(slice, hyperparams));
  RECUA_ASSIGN_OR_RETURN(const SliceOptions completed, complete(options));
  const std::size_t n_logit_rows = logit_rows(slice, completed);
  return SliceMemory{.cache = cache_shape(hyperparams, slice, completed).bytes(),
                     .activations = Activations::bytes(hyperparams, own_share(slice, hyperparams),
                                                       completed.n_ubatch, n_logit_rows)};
}

Result<std::unique_ptr<SliceRunner>> SliceRunner::create(
    compute::Device& device, const HyperParams& hyperparams, const WeightSource& weights,
    const Slice& slice, const SliceOptions& options, Communicator& communicator,
    const LoadProgress& progress) {
  RECUA_CHECK(hyperparams.architecture != nullptr);
  RECUA_RETURN_IF_ERROR(check_group(slice, communicator));
  RECUA_RETURN_IF_ERROR(check_slice(slice, hyperparams));
  RECUA_ASSIGN_OR_RETURN(const SliceOptions completed, complete(options));
  const Share share = own_share(slice, hyperparams);
  RECUA_ASSIGN_OR_RETURN(
      kv::PagedCache cache,
      kv::PagedCache::create(device, cache_shape(hyperparams, slice, completed)));
  RECUA_ASSIGN_OR_RETURN(Activations activations,
                         Activations::create(device, hyperparams, share, completed.n_ubatch,
                                             logit_rows(slice, completed)));
  RECUA_ASSIGN_OR_RETURN(SliceWeights loaded,
                         load_weights(device, hyperparams, weights, slice, progress));
  if (const LoraSize lora = lora_size(loaded); lora.rank > 0) {
    RECUA_RETURN_IF_ERROR(
        activations.allocate_lora(device, completed.n_ubatch, lora.rank, lora.n_out));
  }
  return std::make_unique<DeviceSliceRunner>(device, hyperparams, slice, completed,
                                             std::move(loaded), std::move(cache),
                                             std::move(activations), communicator);
}

}  // namespace recua::model
