#include "cli/local_speeds.h"

#include <algorithm>
#include <bit>
#include <unistd.h>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "cli/build_info.h"
#include "cli/progress.h"
#include "cluster/chunks.h"
#include "cluster/layer_probe.h"
#include "compute/cpu/cpu_device.h"
#include "sys/memory.h"

namespace recua::cli {
namespace {

using cluster::MachineSpeed;

/// The types that most weights of the model have, those of the largest part first.
std::vector<quant::DataType> types_of(const cluster::ModelShape& model) {
  std::map<quant::DataType, std::uint64_t> n_weights;
  const auto add = [&](const cluster::MatrixShape& matrix) {
    n_weights[matrix.type] += matrix.n_weights;
  };
  for (const cluster::LayerShape& layer : model.layers) {
    for (const auto* matrices : {&layer.heads, &layer.kv, &layer.ffn, &layer.whole}) {
      for (const cluster::MatrixShape& matrix : *matrices) add(matrix);
    }
  }
  add(model.output);
  std::vector<std::pair<std::uint64_t, quant::DataType>> sorted;
  for (const auto& [type, n] : n_weights) sorted.emplace_back(n, type);
  std::sort(sorted.rbegin(), sorted.rend());
  std::vector<quant::DataType> out;
  for (const auto& [n, type] : sorted) out.push_back(type);
  if (out.size() > cluster::kMeasuredTypesMax) out.resize(cluster::kMeasuredTypesMax);
  return out;
}

/// Short rows cost more per weight; models of about the same width share a measurement.
std::uint32_t probe_width(std::uint32_t hidden_size) {
  return std::clamp(std::bit_ceil(hidden_size * 2 / 3 + 1), cluster::kMeasuredWidthMin,
                    cluster::kMeasuredWidthMax);
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0') return "unnamed";
  return name;
}

cluster::SpeedKey key_for(std::uint32_t n_threads, std::string subject) {
  return {.host = fmt::format("{}, {}", host_name(), cpu_name()),
          .version = fmt::format("{} {}", version(), build_commit()),
          .n_threads = n_threads,
          .model = std::move(subject)};
}

std::string type_names(const cluster::SpeedRequest& request) {
  std::string out;
  for (const quant::DataType type : request.types) {
    out += fmt::format(" {}", quant::traits(type).name);
  }
  return out;
}

/// Models of the same layers share a measurement.
std::string layers_text(const PlannedModel& model, const cluster::SpeedRequest& request) {
  const cluster::ModelShape& shape = model.shape;
  return fmt::format("{} wide, {}/{} heads of {}, {} inside, {}/{} experts, cache {}/{},{}",
                     shape.hidden_size, shape.n_heads, shape.n_kv_heads, shape.head_dim,
                     shape.ffn_size, shape.n_experts_used, shape.n_experts,
                     quant::traits(model.k_type).name, quant::traits(model.v_type).name,
                     type_names(request));
}

std::string products_text(const cluster::SpeedRequest& request) {
  return fmt::format("products, {} wide,{}", request.width, type_names(request));
}

}  // namespace

std::filesystem::path speeds_file() { return cluster::default_cache_dir() / "machine-speeds.json"; }

cluster::SpeedRequest speed_request(const cluster::ModelShape& model) {
  return {.types = types_of(model), .width = probe_width(model.hidden_size)};
}

Result<MachineSpeed> measure_speed(const cluster::SpeedRequest& request,
                                   const std::filesystem::path& file, bool* measured) {
  const cluster::SpeedKey key = key_for(request.n_threads, products_text(request));
  if (!request.again) {
    if (auto speed = cluster::load_speed(file, key)) return std::move(*speed);
  }
  RECUA_ASSIGN_OR_RETURN(const auto device,
                         compute::make_cpu_device({.n_threads = request.n_threads}));
  RECUA_ASSIGN_OR_RETURN(MachineSpeed speed,
                         cluster::probe_machine(*device, {.n_threads = request.n_threads,
                                                          .types = request.types,
                                                          .width = request.width,
                                                          .folder = file.parent_path()}));
  // Not remembering costs a second the next time, so it is no failure.
  const Result<void> stored = cluster::store_speed(file, key, speed);
  if (measured != nullptr) *measured = true;
  return speed;
}

LocalSpeeds::LocalSpeeds(const PlannedModel& model, Measure measure)
    : model_(&model),
      request_(speed_request(model.shape)),
      measure_(measure),
      file_(speeds_file()) {
  request_.again = measure == Measure::kAlways;
}

cluster::SpeedKey LocalSpeeds::key_of(std::uint32_t n_threads) const {
  return key_for(n_threads, model_->file == nullptr ? products_text(request_)
                                                    : layers_text(*model_, request_));
}

Result<MachineSpeed> LocalSpeeds::with_threads(std::uint32_t n_threads) {
  if (const auto at = known_.find(n_threads); at != known_.end()) return at->second;
  const cluster::SpeedKey key = key_of(n_threads);
  if (measure_ != Measure::kAlways) {
    if (const auto speed = cluster::load_speed(file_, key)) {
      known_.emplace(n_threads, *speed);
      return *speed;
    }
  }
  ProgressBar bar("measuring this machine", ProgressBar::Unit::kCount,
                  std::chrono::milliseconds(300));
  bar.update(0, 1, fmt::format("{} threads", n_threads));
  request_.n_threads = n_threads;
  bool measured = false;
  RECUA_ASSIGN_OR_RETURN(MachineSpeed speed, measure_speed(request_, file_, &measured));
  if (model_->file != nullptr) {
    RECUA_RETURN_IF_ERROR(fit(n_threads, speed));
    const Result<void> stored = cluster::store_speed(file_, key, speed);
    stored_ = stored_ && stored.ok();
    measured = true;
  }
  bar.finish();
  known_.emplace(n_threads, speed);
  if (measured) n_measured_.insert(n_threads);
  return speed;
}

Result<MachineSpeed> LocalSpeeds::with_layers(MachineSpeed products, std::uint32_t n_threads_here) {
  if (model_->file == nullptr) return products;
  RECUA_ASSIGN_OR_RETURN(const MachineSpeed layers, with_threads(n_threads_here));
  cluster::SpeedRequest request = request_;
  request.n_threads = n_threads_here;
  request.again = false;
  RECUA_ASSIGN_OR_RETURN(const MachineSpeed here, measure_speed(request, file_));
  return cluster::corrected_alike(std::move(products), here, layers);
}

std::string LocalSpeeds::note() const {
  std::string threads;
  for (const auto& [n, speed] : known_)
    threads += fmt::format("{}{}", threads.empty() ? "" : ", ", n);
  threads += threads == "1" ? " thread" : " threads";
  if (n_measured_.empty()) {
    return fmt::format("this machine's speed ({}) was measured before, --remeasure does it again",
                       threads);
  }
  return fmt::format("this machine's speed ({}) was measured just now{}", threads,
                     stored_ ? " and is remembered" : "");
}

/// Corrects the speed by layers of the model.
Result<void> LocalSpeeds::fit(std::uint32_t n_threads, MachineSpeed& speed) const {
  RECUA_ASSIGN_OR_RETURN(const auto device, compute::make_cpu_device({.n_threads = n_threads}));
  RECUA_ASSIGN_OR_RETURN(
      const auto times,
      cluster::time_layers(*device, model_->file, model_->hyperparams,
                           {.k_type = model_->k_type,
                            .v_type = model_->v_type,
                            .memory_bytes_max = sys::memory_info().available_bytes / 4}));
  if (times) speed = cluster::fit_to_layers(std::move(speed), model_->shape, *times);
  return ok();
}

}  // namespace recua::cli
