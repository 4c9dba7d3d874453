#pragma once
/// The working memory of a forward pass, allocated once for the largest micro-batch.

#include <memory>

#include "compute/device.h"
#include "model/hyperparams.h"
#include "model/share.h"

namespace recua::model {

/// f32 rows of one width, as many as the largest micro-batch has.
class RowBuffer {
 public:
  /// kResourceExhausted: says what the memory was for.
  Result<void> allocate(compute::Device& device, const char* what, std::size_t n_rows,
                        std::size_t n_cols);
  /// Rows in memory of another's, from its float `offset` on: for what is not in use at the same
  /// time.
  void share(const RowBuffer& other, std::size_t offset, std::size_t n_cols) {
    buffer_ = other.buffer_;
    offset_ = offset;
    n_cols_ = n_cols;
  }
  /// The first n rows.
  [[nodiscard]] compute::Rows rows(std::size_t n) const {
    return {buffer_.get(), offset_, n, n_cols_, n_cols_};
  }
  /// Of the first n rows the columns [begin, begin + n_cols).
  [[nodiscard]] compute::Rows cols(std::size_t n, std::size_t begin, std::size_t n_cols) const {
    return rows(n).slice_cols(begin, n_cols);
  }
  /// The first n rows, each seen as parts rows of n_cols / parts.
  [[nodiscard]] compute::Rows split_rows(std::size_t n, std::size_t parts) const {
    return {buffer_.get(), offset_, n * parts, n_cols_ / parts, n_cols_ / parts};
  }
  [[nodiscard]] compute::Buffer* buffer() const { return buffer_.get(); }

 private:
  std::shared_ptr<compute::Buffer> buffer_;
  std::size_t offset_ = 0;  // In floats.
  std::size_t n_cols_ = 0;
};

/// The input of a matrix that is cut by columns: a rank computes the columns `own` of it, in a
/// buffer that also has the neighbours which quantization blocks of any type would reach. Nobody
/// writes these, so they stay zero.
struct SplitInput {
  Range own;
  Range held;

  static SplitInput of(Range own, std::size_t n_cols);

  [[nodiscard]] compute::Rows own_cols(const RowBuffer& buffer, std::size_t n_rows) const {
    return buffer.cols(n_rows, own.begin - held.begin, own.size());
  }
  /// What a part of a matrix of this type, which has whole blocks, is multiplied with.
  [[nodiscard]] compute::Rows whole_blocks(const RowBuffer& buffer, std::size_t n_rows,
                                           quant::DataType type) const;
};

/// Widths: see model/weights.h; those of heads, ffn_size and vocab_size are the rank's own. With
/// experts gate, up and expert_out hold n_experts_used rows for each row of the micro-batch;
/// without them gate and up hold feed_forward_rows, and projected lies where normed does: a row of
/// it is written when the same row of normed is of no more use. In the same way attended lies where
/// k and v do, which are in the cache by then, and gate and up where attention's rows do.
struct Activations {
  RowBuffer x;                    // The residual stream.
  RowBuffer x_selected;           // Its rows that are asked for, in the last layer of the model.
  RowBuffer normed;               // After a norm.
  RowBuffer projected;            // What is added to x.
  RowBuffer q, k, v;              // After rotation.
  RowBuffer attended;             // What attention gives, before its output matrix (SplitInput).
  RowBuffer gate, up;             // Feed-forward; gate is a SplitInput.
  RowBuffer shared;               // What attention's and the feed-forward's rows lie in.
  RowBuffer rope, rope_selected;  // Cosines and sines.
  RowBuffer router, expert_out;   // With experts.
  RowBuffer expert_ids, expert_weights;
  RowBuffer logits;  // Last slice; a few rows, since a row may have half a megabyte.
  RowBuffer own_logits, gathered_logits;  // With several ranks: the rank's, all one after another.

  RowBuffer lora_low, lora_added;  // With an adapter: A x, and B (A x).

  SplitInput attended_cols, gate_cols;
  std::size_t feed_forward_rows = 0;  // As many go through the feed-forward at a time.

  static Result<Activations> create(compute::Device& device, const HyperParams& hp,
                                    const Share& share, std::size_t n_rows,
                                    std::size_t n_logit_rows);
  /// What create() allocates.
  static std::size_t bytes(const HyperParams& hp, const Share& share, std::size_t n_rows,
                           std::size_t n_logit_rows);
  /// What an adapter of this rank for matrices of at most n_out outputs needs besides.
  Result<void> allocate_lora(compute::Device& device, std::size_t n_rows, std::size_t rank,
                             std::size_t n_out);
};

}  // namespace recua::model
