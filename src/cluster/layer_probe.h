#pragma once
/// Times layers of the model itself on this machine, and corrects by them what machine_probe.h
/// measured apart: between the products of a layer lie a dozen small operators and as many
/// meetings of threads, and its matrices are not read as evenly as one that is larger than all
/// caches.
///
/// Few layers are enough, some times as many as most caches hold; a rank's half of them tells what
/// halves and what does not.

#include <cstdint>
#include <memory>
#include <optional>

#include "base/result.h"
#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "cluster/split_plan.h"
#include "compute/device.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"

namespace recua::cluster {

/// Seconds that a token takes through some of the model's layers, with `context` tokens before it.
struct LayerTimes {
  IndexRange layers = {};
  double context = 0.0;
  double whole = 0.0;
  double half = 0.0;  // With only `share` of each layer; nobody is waited for.
  RankShare share = {};
};

struct LayerProbeOptions {
  quant::DataType k_type = quant::DataType::kF16;
  quant::DataType v_type = quant::DataType::kF16;
  // Of the layers, if there are and memory holds so many. (With 96 MiB a cache of 32 MiB made
  // tokens 1.1 times as fast as through the whole model.)
  std::uint64_t weight_bytes = std::uint64_t{256} << 20;
  std::uint64_t memory_bytes_max = std::uint64_t{4} << 30;  // Nothing is measured with more.
};

/// The fastest of several medians. Empty: the model has too few layers, or heads, or they are too
/// large, or a token takes too long. Takes about a second and reads those layers; nothing else
/// should compute meanwhile.
/// Errors as SliceRunner::create() gives them.
Result<std::optional<LayerTimes>> time_layers(compute::Device& device,
                                              std::shared_ptr<const gguf::GgufFile> file,
                                              const model::HyperParams& hyperparams,
                                              const LayerProbeOptions& options);

/// The speeds with which StepModel predicts exactly these times: what is divided among ranks by
/// slower memory and slower products of one token, the rest by a cost of each operator.
MachineSpeed fit_to_layers(MachineSpeed speed, const ModelShape& model, const LayerTimes& times);

/// For a machine on which only products were measured: its figures change by the factors by which
/// `layers` differ from `products` on another machine.
MachineSpeed corrected_alike(MachineSpeed speed, const MachineSpeed& products,
                             const MachineSpeed& layers);

}  // namespace recua::cluster
