#include "collective/sums.h"

#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"

namespace recua::collective {
namespace {

std::vector<float> random_values(Rng& rng, std::size_t n) {
  std::vector<float> out(n);
  for (float& value : out) value = static_cast<float>(rng.normal());
  return out;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

TEST(Sums, LoopsOfEveryWidthGiveTheSameBits) {
  Rng rng(1);
  const std::vector<float> values = random_values(rng, 400);
  const std::vector<float> more = random_values(rng, 400);
  for (const AddTo add_to : add_loops()) {
    for (std::size_t n = 0; n < 200; ++n) {
      for (const std::size_t shift : {0U, 1U, 3U}) {  // Of 4 bytes: no vector is aligned.
        std::vector<float> sum = values;
        std::vector<float> expected = values;
        for (std::size_t i = 0; i < n; ++i) expected[shift + i] += more[shift + 1 + i];
        add_to(sum.data() + shift, more.data() + shift + 1, n);
        ASSERT_TRUE(same_bits(sum, expected)) << n << " values from " << shift;
      }
    }
  }
}

TEST(Sums, AreInTheOrderOfRanksWhoeverAddsThemUp) {
  Rng rng(2);
  for (const std::size_t n_ranks : {2U, 3U, 5U}) {
    for (const std::size_t n : {0U, 1U, 31U, 1023U, 1024U, 1025U, 5000U}) {
      std::vector<std::vector<float>> parts;
      for (std::size_t r = 0; r < n_ranks; ++r) parts.push_back(random_values(rng, n));
      std::vector<float> expected = parts[0];
      for (std::size_t r = 1; r < n_ranks; ++r) {
        for (std::size_t i = 0; i < n; ++i) expected[i] += parts[r][i];
      }
      for (std::size_t own = 0; own < n_ranks; ++own) {
        std::vector<float> values = parts[own];
        std::vector<const std::byte*> bytes(n_ranks, nullptr);
        for (std::size_t r = 0; r < n_ranks; ++r) {
          if (r != own) bytes[r] = reinterpret_cast<const std::byte*>(parts[r].data());
        }
        sum_in_rank_order(WireFormat::kF32, bytes, own, values);
        ASSERT_TRUE(same_bits(values, expected))
            << n << " values, rank " << own << " of " << n_ranks;
      }
    }
  }
}

}  // namespace
}  // namespace recua::collective
