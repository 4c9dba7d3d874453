// What people write for the planner: described machines, described models, plans. A model and
// machines that were understood can be planned for.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "cluster/cluster_file.h"
#include "cluster/plan_file.h"
#include "cluster/plan_search.h"

namespace {

using recua::quant::DataType;

const recua::cluster::ModelShape& small_model() {
  static const recua::cluster::ModelShape model =
      recua::cluster::parse_model_shape(
          R"({"name": "m", "n_layers": 4, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2,
              "ffn_size": 128, "vocab_size": 256})",
          "m", DataType::kF16, DataType::kF16)
          .value();
  return model;
}

const recua::cluster::ClusterShape& two_machines() {
  static const recua::cluster::ClusterShape cluster =
      recua::cluster::parse_cluster(
          R"({"machines": [{"name": "a", "count": 2, "memory_gib": 1, "memory_gb_per_s": 1,
                            "matmul_gmac_per_s": 1}],
              "default_link": {"transports": [
                {"transport": "tcp", "latency_us": 1, "gbit_per_s": 1}]}})",
          "c")
          .value();
  return cluster;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto cluster = recua::cluster::parse_cluster(text, "c"); cluster.ok()) {
    if (cluster->machines.size() <= 8) {
      static_cast<void>(recua::cluster::choose_plan(small_model(), *cluster, {}));
    }
  }
  const auto model = recua::cluster::parse_model_shape(text, "m", DataType::kF16, DataType::kF32);
  if (model.ok()) static_cast<void>(recua::cluster::choose_plan(*model, two_machines(), {}));
  const auto plan = recua::cluster::parse_plan(text, "p", small_model(), two_machines());
  if (plan.ok()) {
    RECUA_CHECK(recua::cluster::check_plan(small_model(), two_machines(), *plan).ok());
  }
  return 0;
}
