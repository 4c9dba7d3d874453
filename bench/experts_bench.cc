// The feed-forward of a model with experts through the CPU device: as one operator, beside four
// operators one after the other, which is what it is defined as.
//
//   experts/8of64/Q4_K/tokens:1/threads:2      64 experts of 768, 8 used: half of Qwen 3's
//   experts/2of8/Q4_K/tokens:512/threads:2     8 experts of 3584, 2 used: a quarter of Mixtral's
//   experts/2of8small/...                      a layer that the cache holds: hand-overs show
//
// Layers in turns, so that weights come from memory. Tokens choose their experts at random. Times
// are medians per layer; the ratio is the median over neighbouring steps.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/random.h"
#include "compute/cpu/cpu_device.h"
#include "kernels/random_weights.h"
#include "median.h"

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

// The two ways step by step in turns: what disturbs the machine for longer than a step disturbs
// both, so the ratio of neighbours holds where the times do not.
void compare(const Shape& shape, DataType type, std::size_t n_threads, std::size_t n_tokens,
             double seconds) {
  Layers layers(shape, type, n_threads, n_tokens);
  std::vector<double> apart, together, ratios;
  const auto time = [&](bool as_one) {
    const auto begin = std::chrono::steady_clock::now();
    layers.step(as_one);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  time(false);
  time(true);
  const auto begin = std::chrono::steady_clock::now();
  while (ratios.size() < 5 ||
         std::chrono::steady_clock::now() - begin < std::chrono::duration<double>(seconds)) {
    apart.push_back(time(false));
    together.push_back(time(true));
    ratios.push_back(apart.back() / together.back());
  }
  const double each = median(together) / static_cast<double>(shape.n_layers);
  const std::string read =
      n_tokens == 1
          ? fmt::format(", {:.1f} GB/s", static_cast<double>(layers.token_bytes()) /
                                             static_cast<double>(shape.n_layers) / each * 1e-9)
          : "";
  fmt::print(
      "experts/{}/{}/tokens:{}/threads:{}: apart {:.3f} ms, together {:.3f} ms, {:.3f} ({})"
      "{}\n",
      shape.name, quant::traits(type).name, n_tokens, n_threads,
      median(apart) * 1e3 / static_cast<double>(shape.n_layers), each * 1e3, median(ratios),
      ratios.size(), read);
  std::fflush(stdout);
}

}  // namespace
}  // namespace recua

// experts_bench [PART OF A NAME [SECONDS]]
int main(int argc, char** argv) {
  using namespace recua;
  static constexpr Shape kMany{"8of64", 2, 2048, 768, 64, 8};
  static constexpr Shape kFew{"2of8", 2, 2048, 3584, 8, 2};
  static constexpr Shape kSmall{"2of8small", 8, 512, 512, 8, 2};
  const std::string filter = argc > 1 ? argv[1] : "";
  const double seconds = argc > 2 ? std::atof(argv[2]) : 2.0;
  for (const std::size_t threads : {2U, 1U}) {
    for (const Shape& shape : {kMany, kFew, kSmall}) {
      for (const DataType type : {DataType::kQ4_K, DataType::kQ8_0}) {
        for (const std::size_t tokens : {1U, 8U, 32U, 512U}) {
          const std::string name = fmt::format("{}/{}/tokens:{}/threads:{}", shape.name,
                                               quant::traits(type).name, tokens, threads);
          if (name.find(filter) == std::string::npos) continue;
          compare(shape, type, threads, tokens, seconds);
        }
      }
    }
  }
  return 0;
}
