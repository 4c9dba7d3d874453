// Speed of the F32 products of training on one thread, beside the FMAs that a core can do.
//
//   fma/peak                                     independent FMAs in registers: the limit
//   gemm/avx2/forward/tokens:512/in:256/out:768  Y = X W^T;  backward: dX = dY W;  weights: dW +=
//   ..
//
// FLOP/s counts 2 * tokens * in * out per product.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "base/random.h"
#include "kernels/kernel_table.h"
#include "kernels/random_weights.h"
#include "sys/aligned_buffer.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace recua {
namespace {

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void fma_peak(benchmark::State& state) {
  constexpr int kSums = 12;
  constexpr int kSteps = 1000;
  __m256 sums[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sums[i] = _mm256_set1_ps(1.0F);
  const __m256 factor = _mm256_set1_ps(0.5F);
  for (auto _ : state) {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) {
        sums[i] = _mm256_fmadd_ps(sums[i], factor, factor);
        asm("" : "+x"(sums[i]));
      }
    }
  }
  __m256 total = sums[0];
#pragma GCC unroll 12
  for (int i = 1; i < kSums; ++i) total = _mm256_add_ps(total, sums[i]);
  float first = _mm256_cvtss_f32(total);
  benchmark::DoNotOptimize(first);
  const double per_iteration = 2.0 * 8 * kSums * kSteps;
  state.counters["FLOP/s"] = benchmark::Counter(
      per_iteration * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
#endif

enum class Product { kForward, kBackward, kWeights };

void gemm(benchmark::State& state, sys::InstructionSet set, Product product, std::size_t n_tokens,
          std::size_t n_in, std::size_t n_out) {
  Rng rng(3);
  const std::vector<float> x = kernels::random_floats(n_tokens * n_in, rng);
  const std::vector<float> w = kernels::random_floats(n_out * n_in, rng);
  const std::vector<float> dy = kernels::random_floats(n_tokens * n_out, rng);
  std::vector<float> out(std::max({x.size(), w.size(), dy.size()}));
  const sys::AlignedBuffer scratch =
      sys::AlignedBuffer::allocate(kernels::kGemmScratchFloats * sizeof(float)).value();
  kernels::GemmArgs args{.c = out.data(), .scratch = reinterpret_cast<float*>(scratch.data())};
  const kernels::GemmMatrix x_rows{.data = x.data(), .stride = n_in};
  const kernels::GemmMatrix dy_rows{.data = dy.data(), .stride = n_out};
  switch (product) {
    case Product::kForward:
      args.a = x_rows;
      args.b = {.data = w.data(), .stride = n_in, .transposed = true};
      args.m = n_tokens, args.n = n_out, args.k = n_in;
      break;
    case Product::kBackward:
      args.a = dy_rows;
      args.b = {.data = w.data(), .stride = n_in};
      args.m = n_tokens, args.n = n_in, args.k = n_out;
      break;
    case Product::kWeights:
      args.a = {.data = dy.data(), .stride = n_out, .transposed = true};
      args.b = x_rows;
      args.m = n_out, args.n = n_in, args.k = n_tokens;
      args.accumulate = true;
      break;
  }
  args.c_stride = args.n;
  const kernels::KernelTable& table = kernels::kernel_table(set);
  for (auto _ : state) {
    table.gemm(args);
    benchmark::ClobberMemory();
  }
  const double per_iteration = 2.0 * static_cast<double>(n_tokens * n_in * n_out);
  state.counters["FLOP/s"] = benchmark::Counter(
      per_iteration * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void register_all() {
  struct Shape {
    std::size_t n_tokens, n_in, n_out;
  };
  constexpr Shape kShapes[] = {{512, 256, 256},   {2048, 256, 768},  {2048, 768, 256},
                               {1024, 512, 1536}, {512, 2048, 2048}, {256, 256, 4096}};
#if defined(__x86_64__)
  if (sys::supported(sys::InstructionSet::kAvx2))
    benchmark::RegisterBenchmark("fma/peak", fma_peak);
#endif
  for (const sys::InstructionSet set : sys::supported_instruction_sets()) {
    if (set == sys::InstructionSet::kScalar) continue;  // The reference: minutes per product.
    for (const Shape& shape : kShapes) {
      for (const auto& [product, name] :
           {std::pair{Product::kForward, "forward"}, std::pair{Product::kBackward, "backward"},
            std::pair{Product::kWeights, "weights"}}) {
        benchmark::RegisterBenchmark(
            fmt::format("gemm/{}/{}/tokens:{}/in:{}/out:{}", to_string(set), name, shape.n_tokens,
                        shape.n_in, shape.n_out)
                .c_str(),
            gemm, set, product, shape.n_tokens, shape.n_in, shape.n_out);
      }
    }
  }
}

}  // namespace
}  // namespace recua

int main(int argc, char** argv) {
  recua::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
