// Speed of the CPU kernels, one thread unless the name says otherwise.
//
//   read/memory/threads:1        plain 32-byte loads: what a decode kernel can reach at most
//   peak/fma/avx2                f32 multiply-and-adds in registers: what floats can reach at most
//   dot/q4_k/avx2/k:4096         one token, weights from memory: bytes of weights per second
//   dot/q4_k/avx2/packed/k:4096  the same from packed weights
//   matmul/q4_k/avx2/k:4096/tokens:64   many tokens: 2 operations per weight and token per second
//   peak/int8/avx512             the same of bare 8-bit dot products, all in registers; of_peak in
//                                other rows is the share of it
//
// Compare kernels within one run only: machines drift, and memory is shared with neighbours.
#include <algorithm>
#include <cctype>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/random.h"
#include "kernels/kernel_table.h"
#include "kernels/packed.h"
#include "kernels/random_weights.h"
#include "sys/aligned_buffer.h"
#include "sys/thread_pool.h"

namespace recua {
namespace {

using kernels::ActivationKind;
using quant::DataType;

// Rows at which threads meet: whole groups of any type.
constexpr std::size_t kGranule = kernels::kPackedFloatRows;

// Far larger than the caches that a benchmark could fill.
constexpr std::size_t kWeightBytes = std::size_t{256} << 20U;

// A weight matrix that repeats one random megabyte: the memory is real, the making of it quick.
sys::AlignedBuffer repeated_weights(DataType type, std::size_t k, std::size_t n_rows) {
  Rng rng(1);
  const std::size_t row_bytes = quant::row_bytes(type, k);
  const std::size_t n_random = std::min<std::size_t>(n_rows, (1U << 20U) / row_bytes + 1);
  const kernels::RandomWeights random = kernels::random_weights(type, n_random, k, rng);
  sys::AlignedBuffer out = sys::AlignedBuffer::allocate(n_rows * row_bytes).value();
  for (std::size_t r = 0; r < n_rows; ++r) {
    std::copy_n(random.bytes.begin() + static_cast<std::ptrdiff_t>(r % n_random * row_bytes),
                row_bytes, out.data() + r * row_bytes);
  }
  return out;
}

sys::AlignedBuffer packed_weights(DataType type, const sys::AlignedBuffer& rows, std::size_t k,
                                  std::size_t n_rows) {
  sys::AlignedBuffer out = sys::AlignedBuffer::allocate(rows.size()).value();
  const std::size_t group_bytes = kernels::packed_group_bytes(type, k);
  for (std::size_t g = 0; g < n_rows / kernels::packed_rows(type); ++g) {
    kernels::pack_group(type, rows.data() + g * group_bytes, kernels::packed_rows(type), k,
                        out.data() + g * group_bytes);
  }
  return out;
}

struct Tokens {
  Tokens(const kernels::KernelTable& table, ActivationKind kind, std::size_t n, std::size_t k,
         std::size_t n_rows)
      : memory(sys::AlignedBuffer::allocate(n * kernels::activation_row_bytes(kind, k)).value()),
        results(sys::AlignedBuffer::allocate(n * (n_rows + 16) * sizeof(float)).value()) {
    Rng rng(2);
    for (std::size_t t = 0; t < n; ++t) {
      const std::vector<float> values = kernels::random_floats(k, rng);
      std::byte* const to = memory.data() + t * kernels::activation_row_bytes(kind, k);
      if (kind == ActivationKind::kF32) {
        std::copy_n(values.data(), k, reinterpret_cast<float*>(to));
      } else {
        table.quantize(kind)(values.data(), k, to);
      }
      x.push_back(to);
      out.push_back(reinterpret_cast<float*>(results.data()) + t * (n_rows + 16));
    }
  }
  sys::AlignedBuffer memory;
  sys::AlignedBuffer results;
  std::vector<const std::byte*> x;
  std::vector<float*> out;
};

#if defined(__x86_64__)
// Twelve independent sums, as a tile has, cover the latency of the instruction.
__attribute__((target("avx512f,avx512vnni"))) void add_dot_products(std::size_t n) {
  __m512i sums[12];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i w = _mm512_set1_epi8(100);
  const __m512i x = _mm512_set1_epi8(-3);
  for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, w, x);
  }
  for (const __m512i& sum : sums) asm volatile("" : : "v"(sum));
}
#else
void add_dot_products(std::size_t) {}
#endif

// Operations per second of one core that does nothing but 8-bit dot products; 0 without AVX-512.
double peak_operations() {
  if (!sys::supported(sys::InstructionSet::kAvx512)) return 0.0;
  static const double peak = [] {
    constexpr std::size_t kRounds = 2'000'000;
    double best = 0.0;
    for (int run = 0; run < 10; ++run) {
      const auto begin = std::chrono::steady_clock::now();
      add_dot_products(kRounds);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      best = std::max(best, 2.0 * 12 * 64 * kRounds / seconds.count());
    }
    return best;
  }();
  return peak;
}

void bench_peak(benchmark::State& state) {
  constexpr std::size_t kRounds = 100'000;
  for (auto _ : state) add_dot_products(kRounds);
  const double operations = 2.0 * 12 * 64 * kRounds * static_cast<double>(state.iterations());
  state.counters["op/s"] = benchmark::Counter(operations, benchmark::Counter::kIsRate);
  state.counters["of_peak"] =
      benchmark::Counter(operations / peak_operations(), benchmark::Counter::kIsRate);
}

enum class Layout { kRows, kPacked };

void bench_matmul(benchmark::State& state, sys::InstructionSet set, DataType type, Layout layout,
                  std::size_t k, std::size_t n_tokens, std::size_t n_threads) {
  const kernels::KernelTable& table = kernels::kernel_table(set);
  const std::size_t row_bytes = quant::row_bytes(type, k);
  const bool decode = n_tokens == 1;
  const bool packed = layout == Layout::kPacked;
  const std::size_t n_rows = decode ? kWeightBytes / row_bytes / kGranule * kGranule : 2048;
  // As the device calls it: some 64 KiB of weights at a time when there are many tokens.
  const std::size_t chunk =
      decode || packed ? n_rows : std::max<std::size_t>(16, (64U << 10U) / row_bytes);
  sys::AlignedBuffer weights = repeated_weights(type, k, n_rows);
  if (packed) weights = packed_weights(type, weights, k, n_rows);
  const kernels::MatmulFn kernel = packed ? table.packed_matmul(type) : table.matmul(type);
  const Tokens tokens(table,
                      packed ? table.packed_activation_kind(type) : kernels::activation_kind(type),
                      n_tokens, k, n_rows);
  sys::ThreadPool pool(n_threads);
  for (auto _ : state) {
    pool.run([&](std::size_t thread, std::size_t n) {
      const sys::Partition part = sys::partition(n_rows, thread, n, kGranule);
      for (std::size_t r = part.begin; r < part.end; r += chunk) {
        kernel({.w = weights.data() + r * row_bytes,
                .w_stride = packed ? kernels::packed_group_bytes(type, k) : row_bytes,
                .n_rows = std::min(chunk, part.end - r),
                .n_in = k,
                .x = tokens.x.data(),
                .out = tokens.out.data(),
                .out_offset = r,
                .n_tokens = n_tokens});
      }
    });
    benchmark::ClobberMemory();
  }
  const auto n_runs = static_cast<double>(state.iterations());
  if (decode) {
    state.SetBytesProcessed(static_cast<std::int64_t>(n_runs) *
                            static_cast<std::int64_t>(n_rows * row_bytes));
  } else {
    const double operations =
        2.0 * static_cast<double>(n_rows) * static_cast<double>(k) * static_cast<double>(n_tokens);
    state.counters["op/s"] = benchmark::Counter(n_runs * operations, benchmark::Counter::kIsRate);
    if (set == sys::InstructionSet::kAvx512 && packed) {
      state.counters["of_peak"] =
          benchmark::Counter(n_runs * operations / peak_operations(), benchmark::Counter::kIsRate);
    }
  }
}

void bench_read(benchmark::State& state, std::size_t n_threads) {
  const sys::AlignedBuffer memory = sys::AlignedBuffer::allocate(2 * kWeightBytes).value();
  for (std::byte& b : memory.bytes()) b = std::byte{1};
  sys::ThreadPool pool(n_threads);
  for (auto _ : state) {
    pool.run([&](std::size_t thread, std::size_t n) {
      const sys::Partition part = sys::partition(memory.size() / 8, thread, n, 64);
      const auto* words = reinterpret_cast<const std::uint64_t*>(memory.data());
      std::uint64_t sums[16] = {};  // Enough for the compiler to keep wide vectors busy.
      for (std::size_t i = part.begin; i + 16 <= part.end; i += 16) {
        for (std::size_t lane = 0; lane < 16; ++lane) sums[lane] += words[i + lane];
      }
      for (const std::uint64_t sum : sums) benchmark::DoNotOptimize(sum);
    });
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) *
                          static_cast<std::int64_t>(memory.size()));
}

#if defined(__x86_64__)
#define RECUA_BENCH_AVX2 [[gnu::target("avx2,fma")]]
using FloatVector = float __attribute__((vector_size(32)));

RECUA_BENCH_AVX2 inline void fma_step(FloatVector& sum, const FloatVector& a,
                                      const FloatVector& b) {
  asm("vfmadd213ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

// Twelve chains of FMAs, more than their latency needs.
RECUA_BENCH_AVX2 void bench_fma(benchmark::State& state) {
  constexpr int kSteps = 1000;
  const FloatVector a = FloatVector{} + 0.5F;
  const FloatVector b = FloatVector{} + 0.25F;
  FloatVector s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a;
  FloatVector s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a;
  for (auto _ : state) {
    for (int i = 0; i < kSteps; ++i) {
      fma_step(s0, a, b), fma_step(s1, a, b), fma_step(s2, a, b), fma_step(s3, a, b);
      fma_step(s4, a, b), fma_step(s5, a, b), fma_step(s6, a, b), fma_step(s7, a, b);
      fma_step(s8, a, b), fma_step(s9, a, b), fma_step(s10, a, b), fma_step(s11, a, b);
    }
  }
  const FloatVector all = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
  benchmark::DoNotOptimize(all[0]);
  state.counters["op/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * kSteps * 12 * 8 * 2, benchmark::Counter::kIsRate);
}
#endif

void bench_dispatch(benchmark::State& state, std::size_t n_threads) {
  sys::ThreadPool pool(n_threads);
  for (auto _ : state) pool.run([](std::size_t, std::size_t) {});
}

std::string lower(std::string_view name) {
  std::string out(name);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

void register_products(sys::InstructionSet set, DataType type, Layout layout) {
  const std::string name =
      fmt::format("{}/{}{}/k:4096", lower(quant::traits(type).name), sys::to_string(set),
                  layout == Layout::kPacked ? "/packed" : "");
  for (const std::size_t threads : {1U, 2U}) {
    const std::string suffix = threads == 1 ? "" : fmt::format("/threads:{}", threads);
    benchmark::RegisterBenchmark(
        fmt::format("dot/{}{}", name, suffix).c_str(),
        [=](benchmark::State& state) { bench_matmul(state, set, type, layout, 4096, 1, threads); })
        ->UseRealTime();
  }
  for (const std::size_t n : {2U, 4U, 8U, 64U, 512U}) {
    benchmark::RegisterBenchmark(
        fmt::format("matmul/{}/tokens:{}", name, n).c_str(),
        [=](benchmark::State& state) { bench_matmul(state, set, type, layout, 4096, n, 1); })
        ->UseRealTime();
  }
}

void register_all() {
  for (const std::size_t n : {1U, 2U}) {
    benchmark::RegisterBenchmark(fmt::format("read/memory/threads:{}", n).c_str(),
                                 [n](benchmark::State& state) { bench_read(state, n); })
        ->UseRealTime();
    benchmark::RegisterBenchmark(fmt::format("pool/dispatch/threads:{}", n).c_str(),
                                 [n](benchmark::State& state) { bench_dispatch(state, n); })
        ->UseRealTime();
  }
  if (sys::supported(sys::InstructionSet::kAvx512)) {
    benchmark::RegisterBenchmark("peak/int8/avx512", bench_peak)->UseRealTime();
  }
#if defined(__x86_64__)
  if (sys::supported(sys::InstructionSet::kAvx2)) {
    benchmark::RegisterBenchmark("peak/fma/avx2", bench_fma)->UseRealTime();
  }
#endif
  for (const sys::InstructionSet set : sys::supported_instruction_sets()) {
    for (const DataType type : quant::kAllDataTypes) {
      register_products(set, type, Layout::kRows);
      if (kernels::kernel_table(set).packed_matmul(type) != nullptr) {
        register_products(set, type, Layout::kPacked);
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
