#include "train/batch.h"

#include "base/check.h"

namespace recua::train {

std::uint64_t batch_bytes(std::size_t n_sequences, std::size_t n_ctx) {
  constexpr std::uint64_t kRow =
      2 * sizeof(std::int32_t) + sizeof(std::uint8_t) + sizeof(std::uint32_t);
  return std::uint64_t{n_sequences} * (n_ctx * kRow + sizeof(SequenceRows));
}

void Batch::reserve(std::size_t n_sequences, std::size_t n_ctx) {
  const std::size_t n = n_sequences * n_ctx;
  inputs.reserve(n);
  targets.reserve(n);
  counts.reserve(n);
  positions.reserve(n);
  sequences.reserve(n_sequences);
}

std::size_t Batch::n_counted() const {
  std::size_t n = 0;
  for (const std::uint8_t one : counts) n += one != 0 ? 1 : 0;
  return n;
}

void Batch::clear() {
  inputs.clear();
  targets.clear();
  counts.clear();
  positions.clear();
  sequences.clear();
}

void Batch::add(const Example& example) {
  RECUA_CHECK(example.tokens.size() >= 2 && example.counts.size() == example.tokens.size() - 1);
  const std::size_t n = example.counts.size();
  sequences.push_back({.begin = n_rows(), .n = n});
  inputs.insert(inputs.end(), example.tokens.begin(), example.tokens.end() - 1);
  targets.insert(targets.end(), example.tokens.begin() + 1, example.tokens.end());
  counts.insert(counts.end(), example.counts.begin(), example.counts.end());
  for (std::size_t i = 0; i < n; ++i) positions.push_back(static_cast<std::uint32_t>(i));
}

}  // namespace recua::train
