#pragma once
/// For tests of the planner: round models and machines.

#include <string>
#include <vector>

#include "cluster/machines.h"
#include "cluster/model_shape.h"
#include "cluster/split_plan.h"

namespace recua::cluster {

/// Equal layers of Q8_0 matrices.
inline ModelShape test_model(std::uint32_t n_layers, std::uint32_t hidden = 1024,
                             std::uint32_t n_heads = 16, std::uint32_t n_kv_heads = 4) {
  ModelShape model;
  model.name = "test.gguf";
  model.hidden_size = hidden;
  model.n_heads = n_heads;
  model.n_kv_heads = n_kv_heads;
  model.head_dim = hidden / n_heads;
  model.ffn_size = 4 * hidden;
  model.vocab_size = 32000;
  const auto matrix = [](std::uint64_t n_out, std::uint64_t n_in) {
    return MatrixShape{.type = quant::DataType::kQ8_0,
                       .n_weights = n_out * n_in,
                       .n_bytes = n_out * quant::row_bytes(quant::DataType::kQ8_0, n_in)};
  };
  const std::uint64_t kv_size = std::uint64_t{n_kv_heads} * model.head_dim;
  LayerShape layer;
  layer.heads = {matrix(hidden, hidden), matrix(hidden, hidden)};
  layer.kv = {matrix(kv_size, hidden), matrix(kv_size, hidden)};
  layer.ffn = {matrix(model.ffn_size, hidden), matrix(model.ffn_size, hidden),
               matrix(hidden, model.ffn_size)};
  layer.vector_bytes = 2 * sizeof(float) * hidden;
  model.layers.assign(n_layers, layer);
  model.embedding = matrix(model.vocab_size, hidden);
  model.output = model.embedding;
  model.kv_token_bytes = 2 * kv_size * 2;
  model.end_vector_bytes = sizeof(float) * hidden;
  return model;
}

inline Machine test_machine(const std::string& name, double gigabytes_per_second = 10.0,
                            std::uint64_t memory_bytes = std::uint64_t{64} << 30) {
  Machine machine;
  machine.name = name;
  machine.memory_bytes = memory_bytes;
  machine.speed = {.bytes_per_second = gigabytes_per_second * 1e9,
                   .macs_per_second = gigabytes_per_second * 20e9,
                   .by_type = {},
                   .attention_macs_per_second = gigabytes_per_second * 5e9,
                   .operator_seconds = 2e-6};
  return machine;
}

inline std::vector<Machine> test_machines(std::size_t n, double gigabytes_per_second = 10.0,
                                          std::uint64_t memory_bytes = std::uint64_t{64} << 30) {
  std::vector<Machine> out;
  for (std::size_t i = 0; i < n; ++i) {
    out.push_back(test_machine("m" + std::to_string(i), gigabytes_per_second, memory_bytes));
  }
  return out;
}

inline LinkSpec test_link(double latency_us, double gigabytes_per_second,
                          LinkTransport transport = LinkTransport::kRdma) {
  return {.transport = transport,
          .latency_seconds = latency_us * 1e-6,
          .bytes_per_second = gigabytes_per_second * 1e9};
}

/// Layers divided evenly over n_stages stages of n_ranks ranks, machines in order.
inline SplitPlan even_plan(const ModelShape& model, std::uint32_t n_stages, std::uint32_t n_ranks) {
  SplitPlan plan;
  for (std::uint32_t s = 0; s < n_stages; ++s) {
    StagePlan stage;
    stage.layers = {.begin = model.n_layers() * s / n_stages,
                    .end = model.n_layers() * (s + 1) / n_stages};
    stage.ranks = divide_stage(model, std::vector<double>(n_ranks, 1.0));
    for (std::uint32_t r = 0; r < n_ranks; ++r) stage.ranks[r].machine = s * n_ranks + r;
    plan.stages.push_back(std::move(stage));
  }
  return plan;
}

}  // namespace recua::cluster
