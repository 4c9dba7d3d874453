#pragma once
/// The working memory of a forward pass, allocated once for the largest micro-batch.

#include <memory>

#include "compute/device.h"
#include "model/hyperparams.h"

namespace recua::model {

/// f32 rows of one width, as many as the largest micro-batch has.
class RowBuffer {
 public:
  /// kResourceExhausted: says what the memory was for.
  Result<void> allocate(compute::Device& device, const char* what, std::size_t n_rows,
                        std::size_t n_cols);
  /// The first n rows.
  [[nodiscard]] compute::Rows rows(std::size_t n) const {
    return compute::dense_rows(*buffer_, n, n_cols_);
  }
  /// The first n rows, each seen as parts rows of n_cols / parts.
  [[nodiscard]] compute::Rows split_rows(std::size_t n, std::size_t parts) const {
    return compute::dense_rows(*buffer_, n * parts, n_cols_ / parts);
  }
  [[nodiscard]] compute::Buffer* buffer() const { return buffer_.get(); }

 private:
  std::unique_ptr<compute::Buffer> buffer_;
  std::size_t n_cols_ = 0;
};

/// Widths: see model/weights.h. With experts gate, up and expert_out hold n_experts_used rows for
/// each row of the micro-batch.
struct Activations {
  RowBuffer x;                    // The residual stream.
  RowBuffer x_selected;           // Its rows that are asked for, in the last layer of the model.
  RowBuffer normed;               // After a norm.
  RowBuffer projected;            // What is added to x.
  RowBuffer q, k, v;              // After rotation.
  RowBuffer attended;             // What attention gives, before its output matrix.
  RowBuffer gate, up;             // Feed-forward.
  RowBuffer rope, rope_selected;  // Cosines and sines.
  RowBuffer router, expert_out;   // With experts.
  RowBuffer expert_ids, expert_weights;
  RowBuffer logits;  // Last slice; a few rows, since a row may have half a megabyte.

  static Result<Activations> create(compute::Device& device, const HyperParams& hp,
                                    std::size_t n_rows, std::size_t n_logit_rows);
};

}  // namespace recua::model
