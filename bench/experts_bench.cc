// The feed-forward of a model with experts through the CPU device: as one operator, beside four
// operators one after the other, which is what it is defined as.
//
//   experts/8of64/q4_k/tokens:1/together/threads:2     64 experts of 768, 8 used: Qwen 3's shape
//   experts/2of8/q4_k/tokens:512/apart/threads:2       8 experts of 3584, 2 used: half of Mixtral
//   experts/2of8small/...                              a layer that the cache holds: barriers show
//
// Enough layers, in turns, that weights come from memory. Tokens choose their experts at random.
// For ratios: --benchmark_repetitions=7 --benchmark_enable_random_interleaving=true.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "base/random.h"
#include "compute/cpu/cpu_device.h"
#include "kernels/random_weights.h"

namespace recua {
namespace {

using compute::Buffer;
using compute::Device;
using compute::Rows;
using compute::Weight;
using quant::DataType;

struct Shape {
  const char* name;
  std::size_t n_layers, dim, ffn, n_experts, n_used;
};

class Layers {
 public:
  Layers(const Shape& shape, DataType type, std::size_t n_threads, std::size_t n_tokens)
      : s_(shape),
        n_(n_tokens),
        device_(compute::make_cpu_device({.n_threads = n_threads}).value()) {
    for (std::size_t l = 0; l < s_.n_layers; ++l) {
      layers_.push_back({.gate = weight(type, s_.dim, s_.ffn),
                         .up = weight(type, s_.dim, s_.ffn),
                         .down = weight(type, s_.ffn, s_.dim)});
    }
    x_ = memory(n_ * s_.dim);
    out_ = memory(n_ * s_.dim);
    gate_ = memory(n_ * s_.n_used * s_.ffn);
    up_ = memory(n_ * s_.n_used * s_.ffn);
    down_ = memory(n_ * s_.n_used * s_.dim);
    for (std::size_t i = 0; i < n_ * s_.dim; ++i) {
      reinterpret_cast<float*>(x_->host())[i] = static_cast<float>(rng_.normal());
    }
    const auto logits = memory(n_ * s_.n_experts);
    for (std::size_t r = 0; r < kRoutes; ++r) {
      ids_.push_back(device_->allocate(n_ * s_.n_used * sizeof(std::int32_t)).value());
      weights_.push_back(memory(n_ * s_.n_used));
      for (std::size_t i = 0; i < n_ * s_.n_experts; ++i) {
        reinterpret_cast<float*>(logits->host())[i] = static_cast<float>(rng_.normal());
      }
      device_->moe_route(compute::dense_rows(*logits, n_, s_.n_experts), true, route(r));
    }
  }

  void step(bool together) {
    for (const Layer& layer : layers_) {
      const std::size_t n_pairs = n_ * s_.n_used;
      const Rows gate = compute::dense_rows(*gate_, n_pairs, s_.ffn);
      const compute::ExpertFeedForward ff = {
          .gate = layer.gate.get(),
          .up = layer.up.get(),
          .down = layer.down.get(),
          .gate_out = gate,
          .up_out = compute::dense_rows(*up_, n_pairs, s_.ffn),
          .down_in = gate,
          .down_out = compute::dense_rows(*down_, n_pairs, s_.dim)};
      const Rows x = compute::dense_rows(*x_, n_, s_.dim);
      const Rows out = compute::dense_rows(*out_, n_, s_.dim);
      const compute::Route chosen = route(next_++ % kRoutes);
      if (together) {
        device_->moe_feed_forward(ff, x, chosen, out);
      } else {
        device_->Device::moe_feed_forward(ff, x, chosen, out);
      }
    }
    device_->sync();
  }
  /// Of weights that one token needs.
  [[nodiscard]] std::size_t token_bytes() const { return weight_bytes_ / s_.n_experts * s_.n_used; }

 private:
  static constexpr std::size_t kRoutes = 13;
  struct Layer {
    std::unique_ptr<Weight> gate, up, down;
  };

  [[nodiscard]] compute::Route route(std::size_t r) const {
    return {.n_used = s_.n_used, .ids = ids_[r].get(), .weights = weights_[r].get()};
  }
  std::unique_ptr<Buffer> memory(std::size_t n) {
    return device_->allocate(n * sizeof(float)).value();
  }
  // Eight random rows over and over: real memory, made quickly.
  std::unique_ptr<Weight> weight(DataType type, std::size_t n_in, std::size_t n_out) {
    const kernels::RandomWeights random = kernels::random_weights(type, 8, n_in, rng_);
    const std::size_t bytes = quant::row_bytes(type, n_in) * n_out * s_.n_experts;
    std::shared_ptr<Buffer> held = device_->allocate(bytes).value();
    for (std::size_t at = 0; at < bytes; at += random.bytes.size()) {
      std::memcpy(held->host() + at, random.bytes.data(),
                  std::min(random.bytes.size(), bytes - at));
    }
    weight_bytes_ += bytes;
    return device_
        ->load_weight({.name = "w",
                       .type = type,
                       .n_in = n_in,
                       .n_out = n_out,
                       .n_experts = s_.n_experts,
                       .bytes = {held->host(), bytes},
                       .owner = held})
        .value();
  }

  Shape s_;
  std::size_t n_;
  Rng rng_{1};
  std::unique_ptr<Device> device_;
  std::size_t weight_bytes_ = 0;
  std::size_t next_ = 0;
  std::vector<Layer> layers_;
  std::unique_ptr<Buffer> x_, out_, gate_, up_, down_;
  std::vector<std::unique_ptr<Buffer>> ids_, weights_;
};

void bench_step(benchmark::State& state, const Shape& shape, DataType type, std::size_t n_threads,
                std::size_t n_tokens, bool together) {
  Layers layers(shape, type, n_threads, n_tokens);
  layers.step(together);
  for (auto _ : state) layers.step(together);
  const auto n = static_cast<double>(state.iterations()) * static_cast<double>(n_tokens);
  state.counters["tokens/s"] = benchmark::Counter(n, benchmark::Counter::kIsRate);
  if (n_tokens == 1) {
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) *
                            static_cast<std::int64_t>(layers.token_bytes()));
  }
}

void register_all() {
  static constexpr Shape kMany{"8of64", 2, 2048, 768, 64, 8};
  static constexpr Shape kFew{"2of8", 4, 2048, 3584, 8, 2};
  static constexpr Shape kSmall{"2of8small", 8, 512, 512, 8, 2};
  for (const std::size_t threads : {1U, 2U}) {
    for (const Shape& shape : {kMany, kFew, kSmall}) {
      for (const DataType type : {DataType::kQ4_K, DataType::kQ8_0}) {
        for (const std::size_t tokens : {1U, 8U, 32U, 512U}) {
          for (const bool together : {false, true}) {
            const std::string name = fmt::format("experts/{}/{}/tokens:{}/{}/threads:{}",
                                                 shape.name, quant::traits(type).name, tokens,
                                                 together ? "together" : "apart", threads);
            benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
              bench_step(state, shape, type, threads, tokens, together);
            })->UseRealTime();
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace recua

int main(int argc, char** argv) {
  recua::register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
