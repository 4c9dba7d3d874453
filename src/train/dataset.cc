#include "train/dataset.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "base/random.h"

namespace recua::train {

Result<Dataset> Dataset::open(const std::filesystem::path& path,
                              const tokenizer::Tokenizer& tokenizer,
                              const DatasetOptions& options) {
  if (options.n_ctx == 0)
    return Error{ErrorCode::kInvalidArgument, "the context length is 0, need at least 1"};
  if (!(options.validation_share >= 0.0) || !(options.validation_share < 1.0)) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("the share for validation is {}, need at least 0 and less than 1",
                             options.validation_share)};
  }
  RECUA_ASSIGN_OR_RETURN(const TextFile file, TextFile::open(path, options.format));
  Dataset dataset;
  if (!file.is_jsonl()) {
    Result<void> added = dataset.add_windows(file.text(), tokenizer, options.n_ctx);
    if (!added.ok()) return std::move(added.error()).within(path.string());
  } else if (!tokenizer.eos() && !tokenizer.eot()) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("{}: the vocabulary has no end-of-text token "
                             "(tokenizer.ggml.eos_token_id), which must stand behind every reply",
                             path.string())};
  } else {
    RECUA_RETURN_IF_ERROR(file.for_each_line([&](const TextFile::Line& line) {
      return dataset.add_line(line, tokenizer, options.n_ctx);
    }));
  }
  dataset.divide(options.validation_share);
  return dataset;
}

Result<void> Dataset::add_windows(std::string_view text, const tokenizer::Tokenizer& tokenizer,
                                  std::size_t n_ctx) {
  std::vector<TokenId> ids = tokenizer.encode(text, {.add_bos = false, .parse_special = false});
  if (tokenizer.adds_bos()) {
    tokens_.reserve(ids.size() + ids.size() / n_ctx + 1);
    for (std::size_t begin = 0; begin < ids.size(); begin += n_ctx) {
      const std::size_t n = std::min(n_ctx, ids.size() - begin);
      ranges_.push_back({.begin = tokens_.size(), .n_tokens = n + 1, .n_given = 1});
      tokens_.push_back(*tokenizer.bos());
      tokens_.insert(tokens_.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                     ids.begin() + static_cast<std::ptrdiff_t>(begin + n));
    }
    return ok();
  }
  if (ids.size() < 2)
    return Error{ErrorCode::kCorrupt, "a single token; there is nothing to predict"};
  for (std::size_t begin = 0; begin + 1 < ids.size(); begin += n_ctx) {
    ranges_.push_back(
        {.begin = begin, .n_tokens = std::min(n_ctx + 1, ids.size() - begin), .n_given = 1});
  }
  tokens_ = std::move(ids);
  return ok();
}

Result<void> Dataset::add_line(const TextFile::Line& line, const tokenizer::Tokenizer& tokenizer,
                               std::size_t n_ctx) {
  const std::size_t begin = tokens_.size();
  if (tokenizer.adds_bos()) tokens_.push_back(*tokenizer.bos());
  const auto append = [&](std::string_view text, bool from_start) {
    const std::vector<TokenId> ids = tokenizer.encode(
        text, {.add_bos = false, .parse_special = false, .from_start = from_start});
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  };
  append(line.prompt, true);
  const std::size_t n_prompt = tokens_.size() - begin;
  append(line.reply, n_prompt == 0);
  tokens_.push_back(tokenizer.eos() ? *tokenizer.eos() : *tokenizer.eot());
  const std::size_t n_tokens = tokens_.size() - begin;
  if (n_tokens - 1 > n_ctx) {
    return Error{
        ErrorCode::kResourceExhausted,
        fmt::format("{} tokens (prompt {}, reply {}), need at most {} for a context of {}: "
                    "shorten the line or train with a longer context",
                    n_tokens, n_prompt, n_tokens - n_prompt, n_ctx + 1, n_ctx)};
  }
  ranges_.push_back(
      {.begin = begin, .n_tokens = n_tokens, .n_given = std::max<std::size_t>(n_prompt, 1)});
  return ok();
}

void Dataset::divide(double validation_share) {
  const std::size_t n = ranges_.size();
  RECUA_CHECK(n > 0);
  auto n_validation =
      static_cast<std::size_t>(std::llround(static_cast<double>(n) * validation_share));
  if (validation_share > 0.0) n_validation = std::max<std::size_t>(n_validation, 1);
  n_train_ = n - std::min(n_validation, n - 1);
  for (std::size_t i = 0; i < n_train_; ++i)
    n_targets_train_ += ranges_[i].n_tokens - ranges_[i].n_given;

  fingerprint_ = mix(n, n_train_);
  for (const std::int32_t token : tokens_)
    fingerprint_ = mix(fingerprint_ ^ static_cast<std::uint32_t>(token));
  for (const Range& range : ranges_)
    fingerprint_ = mix(fingerprint_, range.n_tokens, range.n_given);
}

Example Dataset::example(std::size_t index) const {
  RECUA_CHECK(index < ranges_.size());
  const Range& range = ranges_[index];
  const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(range.begin);
  Example example{.tokens = {begin, begin + static_cast<std::ptrdiff_t>(range.n_tokens)},
                  .counts = std::vector<std::uint8_t>(range.n_tokens - 1, 1)};
  std::fill_n(example.counts.begin(), range.n_given - 1, std::uint8_t{0});
  return example;
}

std::size_t Dataset::n_inputs(std::size_t index) const {
  RECUA_CHECK(index < ranges_.size());
  return ranges_[index].n_tokens - 1;
}

Shuffle::Shuffle(std::uint64_t seed, std::size_t n)
    : seed_(seed),
      n_(n),
      half_bits_(static_cast<int>(std::bit_width(std::max<std::uint64_t>(n, 2) - 1) + 1) / 2) {
  RECUA_CHECK(n >= 1);
}

std::size_t Shuffle::at(std::uint64_t position) const {
  const std::uint64_t epoch_key = mix(seed_, position / n_);
  const std::uint64_t half_mask = (std::uint64_t{1} << half_bits_) - 1;
  constexpr std::uint64_t kRounds = 8;  // Four are a good permutation; small domains need more.
  std::uint64_t value = position % n_;
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & half_mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      left ^= mix(epoch_key, round, right) & half_mask;
      std::swap(left, right);
    }
    value = left << half_bits_ | right;
  } while (value >= n_);  // The network permutes less than 4 n values: few turns on average.
  return static_cast<std::size_t>(value);
}

}  // namespace recua::train
