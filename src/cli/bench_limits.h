#pragma once
/// How fast a test could be at most on this machine: the yardstick beside each row of `recua
/// bench`.
///
/// A step cannot be faster than its weights and cached keys and values are read from memory, nor
/// than its products are summed by the instructions that the kernels use; whichever is slower is
/// its limit. What else a step does (norms, activations, threads that meet) counts as nothing.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "cli/bench_report.h"
#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "sys/aligned_buffer.h"
#include "sys/cpu_features.h"
#include "sys/machine_peak.h"
#include "sys/thread_pool.h"

namespace recua::cli {

/// The instructions by which the kernels of a set sum products with weights of this type; empty for
/// scalar kernels, whose limit is the compiler's, and for Arm's, which nobody has measured.
std::optional<sys::MultiplyAdd> multiply_add_of(sys::InstructionSet set, quant::DataType type);

/// The limit of a test in steps of at most n_ubatch tokens. limits: bytes_per_second, by_type and
/// attention_macs_per_second are the machine's peaks; a type that is missing counts as no work.
BenchLimit limit_of(const cluster::ModelShape& model, const cluster::MachineSpeed& limits,
                    const BenchTest& test, std::uint32_t n_ubatch);

/// Measures the peaks that a model's weights meet. Takes about 0.2 s at first, 0.1 s later. Others
/// may take a part of the machine that changes from second to second, so it is to be asked before
/// and after each thing that its figures shall stand beside.
class LimitProbe {
 public:
  /// kUnsupported: no wide instructions here. kResourceExhausted: no memory to measure with.
  static Result<LimitProbe> create(const cluster::ModelShape& model, std::size_t n_threads);

  /// Nothing else should compute meanwhile.
  [[nodiscard]] cluster::MachineSpeed measure();

 private:
  struct TypePeak {
    quant::DataType type;
    sys::MultiplyAdd sequence;
  };
  std::unique_ptr<sys::ThreadPool> pool_;
  sys::AlignedBuffer memory_;
  std::vector<TypePeak> types_;
  sys::MultiplyAdd attention_ = sys::MultiplyAdd::kFma256;
};

/// For what ran between two measurements: the mean speed of memory, and the larger of the peaks.
cluster::MachineSpeed limits_between(cluster::MachineSpeed before,
                                     const cluster::MachineSpeed& after);

}  // namespace recua::cli
