#pragma once
/// SliceRunner: the weights, caches and sequence tables of one slice, and the work of one
/// micro-batch on it. A local model has one; a worker has one per session; both use it the same
/// way.
///
/// Threads: one compute thread. Nothing here blocks on a network, except inside the Communicator.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "base/result.h"
#include "compute/device.h"
#include "model/communicator.h"
#include "model/executor.h"
#include "model/hyperparams.h"
#include "model/slice.h"
#include "model/tensor_part.h"
#include "quant/data_type.h"

namespace recua::model {

/// Where a slice's tensors come from: a mapped file here, a worker's verified store there.
class WeightSource {
 public:
  WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;
  virtual ~WeightSource() = default;

  [[nodiscard]] virtual bool has(std::string_view tensor_name) const = 0;
  /// kNotFound: names the tensor and the file.
  virtual Result<compute::TensorBytes> tensor(std::string_view tensor_name) const = 0;
  /// Rows (n_out) of the tensor, also where only a part of it is here. kNotFound as tensor().
  [[nodiscard]] virtual Result<std::size_t> n_rows(std::string_view tensor_name) const;
  /// The type of the tensor, once it was checked as part() would; nothing is read or copied.
  virtual Result<quant::DataType> check(const TensorPart& part) const;
  /// A rank's part, as cut_tensor() gives it; by default that, of tensor(). A source that keeps
  /// only parts gives its own, and need not have the whole tensor.
  virtual Result<compute::TensorBytes> part(const TensorPart& part) const;
  /// All tensors that are needed were loaded: what was read on the way may leave the memory.
  virtual void loaded() const {}
};

struct SliceOptions {
  std::uint32_t n_ctx = 4096;  // Longest sequence.
  std::uint32_t n_pages = 0;   // Logical pages; the engine chooses from [0, n_pages). 0: for one
                               // sequence of n_ctx; options() tells how many that is.
  std::uint32_t page_tokens = 32;
  std::uint32_t n_ubatch = 512;      // Most rows of one run().
  std::uint32_t n_logit_rows = 512;  // Most outputs of one run().
  quant::DataType k_type = quant::DataType::kF16;
  quant::DataType v_type = quant::DataType::kF16;
};

/// What a slice allocates besides its weights.
struct SliceMemory {
  std::size_t cache = 0;        // Keys and values.
  std::size_t activations = 0;  // Working memory of the largest micro-batch.
};

/// kInvalidArgument: options that cannot be.
Result<SliceMemory> slice_memory(const HyperParams& hyperparams, const Slice& slice,
                                 const SliceOptions& options);

/// Bytes of the slice's weights done and in all, while loading.
using LoadProgress = std::function<void(std::size_t done, std::size_t total)>;

class SliceRunner {
 public:
  /// Loads the slice's weights and allocates its caches. device and communicator outlive the
  /// runner. kCorrupt: a tensor has the wrong shape (names it, the shape and the one expected).
  /// kNotFound: a tensor is missing. kResourceExhausted: says what was asked for.
  /// kInvalidArgument: layers, shares or options that cannot be, or a rank that is not the
  /// communicator's.
  static Result<std::unique_ptr<SliceRunner>> create(
      compute::Device& device, const HyperParams& hyperparams, const WeightSource& weights,
      const Slice& slice, const SliceOptions& options, Communicator& communicator,
      const LoadProgress& progress = {});
  virtual ~SliceRunner() = default;

  [[nodiscard]] virtual const Slice& slice() const = 0;
  [[nodiscard]] virtual const SliceOptions& options() const = 0;
  /// Floats of an activation row between slices.
  [[nodiscard]] virtual std::size_t hidden_size() const = 0;

  /// Whether run() would take this batch if it were cut by split_batch() (model/split_batch.h); it
  /// may have n_rows_max rows. Changes nothing. Errors as run() gives them.
  virtual Result<void> check(const StepBatch& batch, std::uint32_t n_rows_max) = 0;

  /// Does one micro-batch of at most n_ubatch rows.
  /// input:  [n_rows, hidden_size] from the slice before; ignored by the first slice.
  /// output: [n_rows, hidden_size] for the next slice, complete on return; ignored by the last
  /// slice. result: filled by the last slice only. kInvalidArgument: the batch breaks a rule of
  /// model/executor.h or a bound of the options; nothing was changed. Every id, position, page and
  /// count is checked here, since they may come from a peer. kResourceExhausted: too many sequences
  /// or tokens in them; nothing was changed. kCorrupt: the model gave logits that are no numbers.
  /// The batch took effect, but its sequences are good for nothing but to be freed. kUnavailable,
  /// kTimeout: a rank is missing (model/communicator.h); clear() before the next epoch.
  /// All ranks of a slice run the same batches in the same order, on the same input rows, and have
  /// the same output rows and the same result.
  virtual Result<void> run(const StepBatch& batch, compute::Rows input, compute::Rows output,
                           StepResult& result) = 0;

  /// Forgets all sequences (a new epoch begins).
  virtual void clear() = 0;
};

}  // namespace recua::model
