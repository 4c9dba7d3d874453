// Attention of all layers of a model through the CPU device, alone: for "attention's share" put its
// time beside that of `recua bench`.
//
//   attention/decode/m/f16/depth:4096/threads:2       one row; bytes/s are those of keys and values
//   attention/prefill512/m/f16/depth:0/threads:1      512 rows; GMAC/s count what is seen
//
// m: 16 layers, 32 heads and 8 KV heads of 64. s: 30 layers, 9 and 3 of 64.
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "base/random.h"
#include "compute/cpu/cpu_device.h"

namespace recua {
namespace {

using compute::Buffer;
using quant::DataType;

struct Shape {
  const char* name;
  std::size_t n_layers, n_heads, n_kv_heads, head_dim;
};

class Caches {
 public:
  Caches(const Shape& shape, DataType type, std::size_t n_threads, std::size_t depth,
         std::size_t n_rows)
      : s_(shape),
        n_rows_(n_rows),
        device_(compute::make_cpu_device({.n_threads = n_threads}).value()) {
    constexpr std::size_t kPageTokens = 32;
    const std::size_t n_pages = (depth + n_rows + kPageTokens - 1) / kPageTokens;
    layer_ = {.buffer = nullptr,
              .n_pages = n_pages,
              .page_tokens = kPageTokens,
              .n_kv_heads = s_.n_kv_heads,
              .head_dim = s_.head_dim,
              .k_type = type,
              .v_type = type};
    layer_.page_stride = layer_.page_bytes();
    cache_ = device_->allocate(s_.n_layers * n_pages * layer_.page_stride).value();
    layer_.buffer = cache_.get();
    q_ = device_->allocate(n_rows * q_cols() * sizeof(float)).value();
    out_ = device_->allocate(n_rows * q_cols() * sizeof(float)).value();
    Rng rng(1);
    for (std::size_t i = 0; i < n_rows * q_cols(); ++i) {
      reinterpret_cast<float*>(q_->host())[i] = static_cast<float>(rng.normal());
    }
    for (std::uint32_t p = 0; p < n_pages; ++p) pages_.push_back(p);
    for (std::size_t r = 0; r < n_rows; ++r) {
      rows_.push_back({.sequence = 0, .position = static_cast<std::uint32_t>(depth + r)});
    }
    fill(rng);
  }

  void step() {
    const std::vector<std::span<const std::uint32_t>> tables = {pages_};
    for (std::size_t l = 0; l < s_.n_layers; ++l) {
      layer_.offset = l * layer_.n_pages * layer_.page_stride;
      device_->attention(layer_, compute::dense_rows(*q_, n_rows_, q_cols()),
                         {.n_heads = s_.n_heads, .n_group = s_.n_heads / s_.n_kv_heads},
                         {.rows = rows_, .page_tables = tables}, 0.125F, 0,
                         compute::dense_rows(*out_, n_rows_, q_cols()));
    }
  }
  [[nodiscard]] std::size_t kv_bytes() const {
    return s_.n_layers * (rows_.back().position + std::size_t{1}) * layer_.token_bytes();
  }
  [[nodiscard]] double macs() const {
    double seen = 0.0;
    for (const compute::AttentionRow& row : rows_) seen += row.position + 1.0;
    return 2.0 * seen * static_cast<double>(s_.n_layers * q_cols());
  }

 private:
  [[nodiscard]] std::size_t q_cols() const { return s_.n_heads * s_.head_dim; }

  // The same random tokens over and over, in all layers.
  void fill(Rng& rng) {
    constexpr std::size_t kTokens = 64;
    const std::size_t n_cols = s_.n_kv_heads * s_.head_dim;
    const auto kv = device_->allocate(kTokens * n_cols * sizeof(float)).value();
    for (std::size_t i = 0; i < kTokens * n_cols; ++i) {
      reinterpret_cast<float*>(kv->host())[i] = static_cast<float>(rng.normal());
    }
    const std::size_t n_slots = layer_.n_pages * layer_.page_tokens;
    for (std::size_t l = 0; l < s_.n_layers; ++l) {
      layer_.offset = l * layer_.n_pages * layer_.page_stride;
      for (std::size_t begin = 0; begin < n_slots; begin += kTokens) {
        std::vector<std::uint64_t> slots;
        for (std::size_t i = begin; i < std::min(n_slots, begin + kTokens); ++i) slots.push_back(i);
        const compute::Rows rows = compute::dense_rows(*kv, slots.size(), n_cols);
        device_->store_kv(layer_, rows, rows, slots);
      }
    }
  }

  Shape s_;
  std::size_t n_rows_;
  std::unique_ptr<compute::Device> device_;
  compute::KvLayer layer_;
  std::unique_ptr<Buffer> cache_, q_, out_;
  std::vector<std::uint32_t> pages_;
  std::vector<compute::AttentionRow> rows_;
};

void bench_attention(benchmark::State& state, const Shape& shape, DataType type,
                     std::size_t n_threads, std::size_t depth, std::size_t n_rows) {
  Caches caches(shape, type, n_threads, depth, n_rows);
  caches.step();
  for (auto _ : state) caches.step();
  const auto n = static_cast<double>(state.iterations());
  state.counters["ms/token"] =
      benchmark::Counter(n * static_cast<double>(n_rows) * 1e-3,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  state.counters["GMAC/s"] =
      benchmark::Counter(n * caches.macs() * 1e-9, benchmark::Counter::kIsRate);
  if (n_rows == 1) {
    state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(caches.kv_bytes()));
  }
}

void register_all() {
  static constexpr Shape kM{"m", 16, 32, 8, 64};
  static constexpr Shape kS{"s", 30, 9, 3, 64};
  const auto add = [](const Shape& shape, DataType type, std::size_t threads, std::size_t depth,
                      std::size_t rows) {
    const std::string what = rows == 1 ? "decode" : fmt::format("prefill{}", rows);
    const std::string name = fmt::format("attention/{}/{}/{}/depth:{}/threads:{}", what, shape.name,
                                         quant::traits(type).name, depth, threads);
    benchmark::RegisterBenchmark(
        name.c_str(),
        [=](benchmark::State& state) { bench_attention(state, shape, type, threads, depth, rows); })
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  };
  for (const std::size_t threads : {1U, 2U}) {
    for (const DataType type : {DataType::kF16, DataType::kF32, DataType::kQ8_0, DataType::kQ4_0}) {
      for (const std::size_t depth : {128U, 4096U, 16384U}) {
        add(kM, type, threads, depth, 1);
        add(kS, type, threads, depth, 1);
      }
      for (const std::size_t depth : {0U, 4096U}) {
        add(kM, type, threads, depth, 8);
        add(kM, type, threads, depth, 512);
        add(kS, type, threads, depth, 512);
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
