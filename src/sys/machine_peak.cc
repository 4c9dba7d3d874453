// Sums are kept in as many registers as a kernel's tile has, so that no instruction waits for the
// one before. An empty asm claims to change what is multiplied: else it would be done once.
#include "sys/machine_peak.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/check.h"

namespace recua::sys {
namespace {

constexpr std::size_t kLine = 64;

using Clock = std::chrono::steady_clock;

template <class Job>
double seconds_of(ThreadPool& pool, Job&& job) {
  const auto before = Clock::now();
  pool.run(job);
  const std::chrono::duration<double> seconds = Clock::now() - before;
  return std::max(seconds.count(), 1e-9);
}

#if defined(__x86_64__)
#define RECUA_AVX2 [[gnu::target("avx2,fma")]]
#define RECUA_AVX512 [[gnu::target("avx512f,avx512bw,avx512vnni")]]

/// Sums of a tile: 6 of 16 registers of 256 bits leave room for weights, activations and products,
/// 24 of 32 of 512 bits as well. (Every loop over them is unrolled: else they are in memory.)
constexpr std::size_t kSums = 6;
constexpr std::size_t kSumsWide = 24;
constexpr std::size_t kFmaSums = 12;  // FMA has four cycles of latency, twice per cycle.

RECUA_AVX2 void sum_fma256(std::size_t n) {
  __m256 w = _mm256_set1_ps(1.0F);
  const __m256 x = _mm256_set1_ps(1e-3F);
  __m256 sums[kFmaSums] = {};
  for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(w, x, sum);
      asm("" : "+x"(sum));
    }
    asm("" : "+x"(w));
  }
#pragma GCC unroll 32
  for (__m256& sum : sums) asm volatile("" ::"x"(sum));
}

RECUA_AVX512 void sum_fma512(std::size_t n) {
  __m512 w = _mm512_set1_ps(1.0F);
  const __m512 x = _mm512_set1_ps(1e-3F);
  __m512 sums[kFmaSums] = {};
  for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(w, x, sum);
      asm("" : "+v"(sum));
    }
    asm("" : "+v"(w));
  }
#pragma GCC unroll 32
  for (__m512& sum : sums) asm volatile("" ::"v"(sum));
}

/// kAdds products of pairs are added in 16 bits before they are widened.
template <std::size_t kAdds>
RECUA_AVX2 void sum_bytes256(std::size_t n) {
  __m256i w = _mm256_set1_epi8(1);
  __m256i x = _mm256_set1_epi8(2);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kSums] = {};
  for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (__m256i& sum : sums) {
      __m256i pairs = _mm256_maddubs_epi16(w, x);
#pragma GCC unroll 32
      for (std::size_t k = 1; k < kAdds; ++k) {
        asm("" : "+x"(x));
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, x));
        asm("" : "+x"(pairs));
      }
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      asm("" : "+x"(sum), "+x"(x));
    }
    asm("" : "+x"(w));
  }
#pragma GCC unroll 32
  for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
}

RECUA_AVX2 void sum_words256(std::size_t n) {
  __m256i w = _mm256_set1_epi16(1);
  __m256i x = _mm256_set1_epi16(2);
  __m256i sums[kSums] = {};
  for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (__m256i& sum : sums) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
      asm("" : "+x"(sum), "+x"(x));
    }
    asm("" : "+x"(w));
  }
#pragma GCC unroll 32
  for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
}

RECUA_AVX512 void sum_dot_bytes512(std::size_t n) {
  __m512i w = _mm512_set1_epi8(1);
  const __m512i x = _mm512_set1_epi8(2);
  __m512i sums[kSumsWide] = {};
  for (std::size_t i = 0; i < n; ++i) {
#pragma GCC unroll 32
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, w, x);
      asm("" : "+v"(sum));
    }
    asm("" : "+v"(w));
  }
#pragma GCC unroll 32
  for (__m512i& sum : sums) asm volatile("" ::"v"(sum));
}

// Asks for what lies kAhead bytes ahead; 0: plain loads.
template <std::size_t kAhead>
RECUA_AVX2 void read_wide(const std::byte* from, std::size_t n_bytes) {
  __m256i sums[4] = {};
  for (std::size_t at = 0; at + 4 * 32 <= n_bytes; at += 4 * 32) {
    if constexpr (kAhead != 0) {
      _mm_prefetch(reinterpret_cast<const char*>(from + at + kAhead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(from + at + kAhead + kLine), _MM_HINT_T0);
    }
#pragma GCC unroll 32
    for (std::size_t i = 0; i < 4; ++i) {
      const auto* p = reinterpret_cast<const __m256i*>(from + at + 32 * i);
      sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(p));
    }
  }
#pragma GCC unroll 32
  for (__m256i& sum : sums) asm volatile("" ::"x"(sum));
}
#endif

void read_plain(const std::byte* from, std::size_t n_bytes) {
  std::array<std::uint64_t, 8> sums = {};
  for (std::size_t at = 0; at + kLine <= n_bytes; at += kLine) {
    std::array<std::uint64_t, 8> words;
    std::memcpy(words.data(), from + at, kLine);
    for (std::size_t i = 0; i < words.size(); ++i) sums[i] ^= words[i];
  }
  for (std::uint64_t& sum : sums) asm volatile("" ::"r"(sum));
}

struct Loop {
  void (*run)(std::size_t n) = nullptr;
  std::size_t products = 0;  // Of one turn.
};

Loop loop_of([[maybe_unused]] MultiplyAdd sequence) {
#if defined(__x86_64__)
  switch (sequence) {
    case MultiplyAdd::kFma256:
      return {.run = sum_fma256, .products = kFmaSums * 8};
    case MultiplyAdd::kFma512:
      return {.run = sum_fma512, .products = kFmaSums * 16};
    case MultiplyAdd::kBytesBy4:
      return {.run = sum_bytes256<4>, .products = kSums * 4 * 32};
    case MultiplyAdd::kBytesBy8:
      return {.run = sum_bytes256<8>, .products = kSums * 8 * 32};
    case MultiplyAdd::kWords256:
      return {.run = sum_words256, .products = kSums * 16};
    case MultiplyAdd::kDotBytes512:
      return {.run = sum_dot_bytes512, .products = kSumsWide * 64};
  }
#endif
  return {};
}

}  // namespace

bool supported([[maybe_unused]] MultiplyAdd sequence) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (sequence == MultiplyAdd::kDotBytes512 || sequence == MultiplyAdd::kFma512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

double multiply_adds_per_second(MultiplyAdd sequence, ThreadPool& pool,
                                std::chrono::duration<double> at_least) {
  RECUA_CHECK(supported(sequence));
  const Loop loop = loop_of(sequence);
  // 0.1 to 1 ms per run: long beside waking the threads.
  const std::size_t n_turns = (std::size_t{1} << 24U) / loop.products;
  const auto job = [&](std::size_t, std::size_t) { loop.run(n_turns); };
  pool.run(job);  // Wakes the threads, and the processor's wide units.
  double best = 1e30;
  const auto begin = Clock::now();
  do {
    best = std::min(best, seconds_of(pool, job));
  } while (Clock::now() - begin < at_least);
  return static_cast<double>(n_turns * loop.products * pool.n_threads()) / best;
}

double read_bytes_per_second(std::span<const std::byte> bytes, ThreadPool& pool,
                             std::chrono::duration<double> at_least) {
  // Which way is the fastest depends on the processor, and on how many threads there are.
  std::vector<void (*)(const std::byte*, std::size_t)> ways = {read_plain};
#if defined(__x86_64__)
  if (supported(MultiplyAdd::kFma256)) ways = {read_wide<0>, read_wide<1024>, read_wide<4096>};
#endif
  const auto pass = [&](std::size_t way) {
    return seconds_of(pool, [&](std::size_t thread, std::size_t n) {
      const Partition part = partition(bytes.size(), thread, n, kLine);
      ways[way](bytes.data() + part.begin, part.size());
    });
  };
  pass(0);  // Wakes the threads.
  std::vector<std::vector<double>> seconds(ways.size());
  const auto begin = Clock::now();
  do {
    for (std::size_t way = 0; way < ways.size(); ++way) seconds[way].push_back(pass(way));
  } while (Clock::now() - begin < at_least);
  double best = 1e30;
  for (std::vector<double>& runs : seconds) {
    std::sort(runs.begin(), runs.end());
    best = std::min(best, runs[runs.size() / 2]);
  }
  return static_cast<double>(bytes.size()) / best;
}

}  // namespace recua::sys
