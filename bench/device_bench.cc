// One decode step of a llama-shaped model through the CPU device, operator by operator as a forward
// pass calls them, without anything around it: how much time operators cost on top of their work.
//
//   device/decode/stories260k/f32/threads:1    5 layers of 64: nearly all overhead
//   device/decode/1b/q4_0/threads:2            16 layers of 2048: nearly all memory
//   device/decode/1b/q4_0/rows/threads:2       the same with weights as a file has them
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
  std::size_t n_layers, dim, n_heads, n_kv_heads, ffn, vocab;
};

class Model {
 public:
  Model(const Shape& shape, DataType type, std::size_t n_threads, std::size_t n_tokens, bool repack)
      : s_(shape),
        n_(n_tokens),
        device_(compute::make_cpu_device({.n_threads = n_threads, .repack = repack}).value()) {
    const std::size_t kv = s_.dim / s_.n_heads * s_.n_kv_heads;
    for (std::size_t l = 0; l < s_.n_layers; ++l) {
      layers_.push_back({weight(type, s_.dim, s_.dim), weight(type, s_.dim, kv),
                         weight(type, s_.dim, kv), weight(type, s_.dim, s_.dim),
                         weight(type, s_.dim, s_.ffn), weight(type, s_.dim, s_.ffn),
                         weight(type, s_.ffn, s_.dim)});
    }
    output_ = weight(type, s_.dim, s_.vocab);
    norm_ = memory(s_.dim);
    freq_ = memory(s_.dim / s_.n_heads / 2);
    x_ = memory(n_ * s_.dim);
    h_ = memory(n_ * s_.dim);
    q_ = memory(n_ * s_.dim);
    k_ = memory(n_ * kv);
    v_ = memory(n_ * kv);
    gate_ = memory(n_ * s_.ffn);
    up_ = memory(n_ * s_.ffn);
    logits_ = memory(s_.vocab);
    table_ = memory(n_ * s_.dim / s_.n_heads);
    kv_ = {.buffer = nullptr,
           .n_pages = (kContext + n_) / 16 + 1,
           .page_tokens = 16,
           .n_kv_heads = s_.n_kv_heads,
           .head_dim = s_.dim / s_.n_heads};
    kv_.page_stride = kv_.page_bytes();
    kv_.n_pages *= s_.n_layers;
    cache_ = device_->allocate(kv_.n_pages * kv_.page_stride).value();
    kv_.buffer = cache_.get();
    for (std::uint32_t p = 0; p < kv_.n_pages; ++p) pages_.push_back(p);
    for (std::uint32_t t = 0; t < n_; ++t) {
      positions_.push_back(static_cast<std::uint32_t>(kContext) + t);
      slots_.push_back(kContext + t);
      rows_.push_back({.sequence = 0, .position = static_cast<std::uint32_t>(kContext) + t});
      ids_.push_back(static_cast<std::int32_t>(t));
    }
  }

  void step() {
    const std::size_t head_dim = kv_.head_dim;
    const std::size_t kv = head_dim * s_.n_kv_heads;
    const auto rows = [&](const std::unique_ptr<Buffer>& b, std::size_t n_cols) {
      return compute::dense_rows(*b, n_, n_cols);
    };
    const Rows x = rows(x_, s_.dim);
    const Rows h = rows(h_, s_.dim);
    const Rows table = rows(table_, head_dim);
    const std::vector<std::span<const std::uint32_t>> tables = {pages_};
    device_->embed(*output_, 0, ids_, x);
    device_->rope_table(positions_, *freq_, 1.0F, table);
    const compute::HeadGroups heads = {.n_heads = s_.n_heads,
                                       .n_group = s_.n_heads / s_.n_kv_heads};
    for (const Layer& layer : layers_) {
      device_->rms_norm(x, *norm_, 1e-5F, h);
      device_->matmul(*layer.q, h, rows(q_, s_.dim));
      device_->matmul(*layer.k, h, rows(k_, kv));
      device_->matmul(*layer.v, h, rows(v_, kv));
      device_->rope(rows(q_, s_.dim), s_.n_heads, compute::RopeKind::kInterleaved, table);
      device_->rope(rows(k_, kv), s_.n_kv_heads, compute::RopeKind::kInterleaved, table);
      device_->store_kv(kv_, rows(k_, kv), rows(v_, kv), slots_);
      device_->attention(kv_, rows(q_, s_.dim), heads, {.rows = rows_, .page_tables = tables}, 0.1F,
                         0, h);
      device_->matmul(*layer.o, h, rows(q_, s_.dim));
      device_->add(x, rows(q_, s_.dim), x);
      device_->rms_norm(x, *norm_, 1e-5F, h);
      device_->matmul(*layer.gate, h, rows(gate_, s_.ffn));
      device_->matmul(*layer.up, h, rows(up_, s_.ffn));
      device_->silu_mul(rows(gate_, s_.ffn), rows(up_, s_.ffn), rows(up_, s_.ffn));
      device_->matmul(*layer.down, rows(up_, s_.ffn), h);
      device_->add(x, h, x);
    }
    device_->rms_norm(x, *norm_, 1e-5F, h);
    device_->matmul(*output_, h.slice_rows(n_ - 1, 1), compute::dense_rows(*logits_, 1, s_.vocab));
    device_->sync();
  }
  [[nodiscard]] std::size_t weight_bytes() const { return weight_bytes_; }

 private:
  static constexpr std::size_t kContext = 128;
  struct Layer {
    std::unique_ptr<Weight> q, k, v, o, gate, up, down;
  };

  std::unique_ptr<Buffer> memory(std::size_t n) {
    auto out = device_->allocate(n * sizeof(float)).value();
    for (std::size_t i = 0; i < n; ++i) {
      reinterpret_cast<float*>(out->host())[i] = 0.01F + 0.001F * static_cast<float>(i % 7);
    }
    return out;
  }
  // Eight random rows over and over: real memory, made quickly.
  std::unique_ptr<Weight> weight(DataType type, std::size_t n_in, std::size_t n_out) {
    const kernels::RandomWeights random = kernels::random_weights(type, 8, n_in, rng_);
    const std::size_t bytes = quant::row_bytes(type, n_in) * n_out;
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
                       .bytes = {held->host(), bytes},
                       .owner = held})
        .value();
  }

  Shape s_;
  std::size_t n_;
  Rng rng_{1};
  std::unique_ptr<Device> device_;
  std::size_t weight_bytes_ = 0;
  std::vector<Layer> layers_;
  std::unique_ptr<Weight> output_;
  std::unique_ptr<Buffer> norm_, freq_, x_, h_, q_, k_, v_, gate_, up_, logits_, table_, cache_;
  compute::KvLayer kv_;
  std::vector<std::uint32_t> pages_, positions_;
  std::vector<std::uint64_t> slots_;
  std::vector<compute::AttentionRow> rows_;
  std::vector<std::int32_t> ids_;
};

void bench_step(benchmark::State& state, const Shape& shape, DataType type, std::size_t n_threads,
                std::size_t n_tokens, bool repack) {
  Model model(shape, type, n_threads, n_tokens, repack);
  model.step();
  for (auto _ : state) model.step();
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(n_tokens),
                         benchmark::Counter::kIsRate);
  if (n_tokens == 1) {
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) *
                            static_cast<std::int64_t>(model.weight_bytes()));
  }
}

void register_all() {
  static constexpr Shape kSmall{"stories260k", 5, 64, 8, 4, 172, 512};
  static constexpr Shape kLarge{"1b", 16, 2048, 32, 8, 8192, 128256};
  const auto add = [](const Shape& shape, DataType type, std::size_t threads, std::size_t tokens,
                      bool repack = true) {
    const std::string what = tokens == 1 ? "decode" : fmt::format("prefill{}", tokens);
    const std::string name = fmt::format("device/{}/{}/{}{}/threads:{}", what, shape.name,
                                         quant::traits(type).name, repack ? "" : "/rows", threads);
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
      bench_step(state, shape, type, threads, tokens, repack);
    })->UseRealTime();
  };
  for (const std::size_t threads : {1U, 2U}) {
    add(kSmall, DataType::kF32, threads, 1);
    add(kSmall, DataType::kF32, threads, 64);
    for (const DataType type :
         {DataType::kQ4_0, DataType::kQ4_K, DataType::kQ6_K, DataType::kQ8_0}) {
      for (const std::size_t tokens : {1U, 8U, 128U}) {
        add(kLarge, type, threads, tokens, false);
        add(kLarge, type, threads, tokens);
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
