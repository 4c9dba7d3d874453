#pragma once
/// Random numbers that are the same everywhere for the same seed.
///
/// Rng: a sequence (splitmix64, Steele et al. 2014), for tests, weights and the simulated network.
/// mix(): a hash of a few integers, for numbers that must depend on nothing but their name, such as
/// the sampler's (seed, choice, position). Not for secrets: those come from the operating system.

#include <cstdint>

namespace recua {

constexpr std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
constexpr std::uint64_t mix(std::uint64_t a, std::uint64_t b) { return mix(mix(a) ^ b); }
constexpr std::uint64_t mix(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  return mix(mix(a, b) ^ c);
}

/// Uniform in [0, 1), from the top 53 bits.
constexpr double to_unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

class Rng {
 public:
  explicit constexpr Rng(std::uint64_t seed) : state_(seed) {}

  constexpr std::uint64_t next() {
    const std::uint64_t out = mix(state_);
    state_ += 0x9e3779b97f4a7c15ULL;
    return out;
  }
  constexpr double unit() { return to_unit(next()); }
  /// Uniform in [0, n). n >= 1. The bias of the plain remainder is below n / 2^64.
  constexpr std::uint64_t below(std::uint64_t n) { return next() % n; }
  /// Normal distribution, mean 0, deviation 1 (Irwin-Hall sum of 12: exact enough for weights).
  constexpr double normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += unit();
    return sum;
  }

 private:
  std::uint64_t state_;
};

}  // namespace recua
