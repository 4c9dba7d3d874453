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
// One asm statement: the compiler keeps an array of sums in memory here, which halves the number.
[[gnu::target("avx2,fma")]] void fma_peak(benchmark::State& state) {
  constexpr int kSteps = 1000;
  const __m256 factor = _mm256_set1_ps(0.5F);
  __m256 s[4] = {factor, factor, factor, factor};
  __m256 t[4] = {factor, factor, factor, factor};
  __m256 u[4] = {factor, factor, factor, factor};
  for (auto _ : state) {
    for (int step = 0; step < kSteps; ++step) {
      asm volatile(
          "vfmadd132ps %12, %12, %0\n\tvfmadd132ps %12, %12, %1\n\t"
          "vfmadd132ps %12, %12, %2\n\tvfmadd132ps %12, %12, %3\n\t"
          "vfmadd132ps %12, %12, %4\n\tvfmadd132ps %12, %12, %5\n\t"
          "vfmadd132ps %12, %12, %6\n\tvfmadd132ps %12, %12, %7\n\t"
          "vfmadd132ps %12, %12, %8\n\tvfmadd132ps %12, %12, %9\n\t"
          "vfmadd132ps %12, %12, %10\n\tvfmadd132ps %12, %12, %11"
          : "+x"(s[0]), "+x"(s[1]), "+x"(s[2]), "+x"(s[3]), "+x"(t[0]), "+x"(t[1]), "+x"(t[2]),
            "+x"(t[3]), "+x"(u[0]), "+x"(u[1]), "+x"(u[2]), "+x"(u[3])
          : "x"(factor));
    }
  }
  const double per_iteration = 2.0 * 8 * 12 * kSteps;
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
