// Units (heads, blocks of columns, blocks of tokens) are handed out one by one, each to the rank
// that would be done with one more the soonest: this is D'Hondt's method, and what it makes
// smallest is the largest units / speed. Then each rank's units lie behind those of the one before.
#include "model/share.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <utility>

#include <fmt/format.h>

#include "base/check.h"
#include "model/hyperparams.h"

namespace recua::model {
namespace {

/// Cuts of columns at multiples of this many need no block of a matrix twice, whatever its type.
constexpr std::uint32_t kFfnGranule = 256;
/// A cache line of logits.
constexpr std::uint32_t kVocabGranule = 16;
/// Granules are this small beside the smallest share, so that rounding to them costs a few percent.
constexpr double kGranulesPerShare = 16.0;
/// Heads are cut within a KV head only if that makes the slowest rank this much faster: the ranks
/// on both sides then keep its keys and values.
constexpr double kWorthSharing = 0.9;

Error wrong(std::string message) { return Error{ErrorCode::kInvalidArgument, std::move(message)}; }

/// The lengths of the parts; n_units >= speeds.size(), each part has one at least.
std::vector<std::uint32_t> apportion(std::uint32_t n_units, std::span<const double> speeds) {
  std::vector<std::uint32_t> parts(speeds.size(), 1);
  using Turn = std::pair<double, std::size_t>;  // When the rank would be done; ties: lower rank.
  std::priority_queue<Turn, std::vector<Turn>, std::greater<>> turns;
  for (std::size_t r = 0; r < speeds.size(); ++r) turns.emplace(2.0 / speeds[r], r);
  for (auto left = n_units - static_cast<std::uint32_t>(parts.size()); left > 0; --left) {
    const std::size_t rank = turns.top().second;
    turns.pop();
    ++parts[rank];
    turns.emplace((parts[rank] + 1.0) / speeds[rank], rank);
  }
  return parts;
}

std::vector<Range> ranges(std::uint32_t n, std::uint32_t granule, std::span<const double> speeds) {
  std::vector<Range> out;
  std::uint32_t begin = 0;
  for (const std::uint32_t part : apportion((n + granule - 1) / granule, speeds)) {
    const std::uint32_t end = std::min(n, begin + part * granule);
    out.push_back({begin, end});
    begin = end;
  }
  return out;
}

/// The largest power of two up to max that is small beside every share of n.
std::uint32_t granule(std::uint32_t n, std::uint32_t max, double smallest_part) {
  std::uint32_t size = max;
  while (size > 1 && n * smallest_part < kGranulesPerShare * size) size /= 2;
  return size;
}

Range kv_heads_of(const HyperParams& hp, Range heads) {
  const std::uint32_t group = hp.n_heads / hp.n_kv_heads;
  return {heads.begin / group, (heads.end - 1) / group + 1};
}

/// When the slowest rank is done with its projections: a query head has two matrices of head_dim by
/// hidden_size (q, output), a KV head as well (k, v).
double slowest(const HyperParams& hp, std::span<const Range> heads,
               std::span<const double> speeds) {
  double out = 0.0;
  for (std::size_t r = 0; r < heads.size(); ++r) {
    out = std::max(out, (heads[r].size() + kv_heads_of(hp, heads[r]).size()) / speeds[r]);
  }
  return out;
}

std::vector<Range> divide_heads(const HyperParams& hp, std::span<const double> speeds) {
  std::vector<Range> single = ranges(hp.n_heads, 1, speeds);
  if (speeds.size() > hp.n_kv_heads) return single;
  std::vector<Range> grouped = ranges(hp.n_heads, hp.n_heads / hp.n_kv_heads, speeds);
  const bool share_kv = slowest(hp, single, speeds) < kWorthSharing * slowest(hp, grouped, speeds);
  return share_kv ? single : grouped;
}

std::uint32_t inner_size(const HyperParams& hp) {
  return hp.n_experts == 0 ? hp.ffn_size : hp.expert_ffn_size;
}

Result<void> check_range(const char* what, std::size_t rank, Range found, std::uint32_t begin,
                         std::uint32_t end_max) {
  if (found.begin == begin && found.end > begin && found.end <= end_max) return ok();
  return wrong(
      fmt::format("rank {} has the {} {} to {}; expected them to begin at {} and to end "
                  "above it, at most at {}",
                  rank, what, found.begin, found.end, begin, end_max));
}

}  // namespace

Share whole_share(const HyperParams& hp) {
  return {.heads = {0, hp.n_heads},
          .kv_heads = {0, hp.n_kv_heads},
          .ffn = {0, inner_size(hp)},
          .vocab = {0, hp.vocab_size}};
}

Result<std::vector<Share>> divide(const HyperParams& hp, std::span<const double> speeds) {
  if (speeds.empty()) return wrong("no speeds: a tensor split needs one for each rank");
  const std::pair<const char*, std::uint32_t> bounds[] = {
      {"query heads", hp.n_heads},
      {"columns in its feed-forward", inner_size(hp)},
      {"tokens in its vocabulary", hp.vocab_size}};
  for (const auto& [what, n] : bounds) {
    if (speeds.size() <= n) continue;
    return wrong(
        fmt::format("a tensor split over {} ranks: the model has {} {} and each rank needs "
                    "one at least, so 1 to {} ranks work",
                    speeds.size(), n, what, std::min({hp.n_heads, inner_size(hp), hp.vocab_size})));
  }
  double total = 0.0;
  for (std::size_t r = 0; r < speeds.size(); ++r) {
    if (!(speeds[r] >= 1e-30 && speeds[r] <= 1e30)) {
      return wrong(
          fmt::format("the speed of rank {} is {}; expected a number above 0", r, speeds[r]));
    }
    total += speeds[r];
  }
  const double smallest = *std::min_element(speeds.begin(), speeds.end()) / total;
  const std::vector<Range> heads = divide_heads(hp, speeds);
  const std::uint32_t n_ffn = inner_size(hp);
  const auto ffn = ranges(n_ffn, granule(n_ffn, kFfnGranule, smallest), speeds);
  const auto vocab = ranges(hp.vocab_size, granule(hp.vocab_size, kVocabGranule, smallest), speeds);
  std::vector<Share> shares;
  for (std::size_t r = 0; r < speeds.size(); ++r) {
    shares.push_back({.heads = heads[r],
                      .kv_heads = kv_heads_of(hp, heads[r]),
                      .ffn = ffn[r],
                      .vocab = vocab[r]});
  }
  RECUA_CHECK(check_shares(hp, static_cast<std::uint32_t>(shares.size()), shares).ok());
  return shares;
}

Result<void> check_shares(const HyperParams& hp, std::uint32_t n_ranks,
                          std::span<const Share> shares) {
  if (shares.size() != n_ranks) {
    return wrong(
        fmt::format("{} shares for {} ranks; expected one for each", shares.size(), n_ranks));
  }
  Share before;
  for (std::size_t r = 0; r < shares.size(); ++r) {
    const Share& share = shares[r];
    RECUA_RETURN_IF_ERROR(check_range("query heads", r, share.heads, before.heads.end, hp.n_heads));
    RECUA_RETURN_IF_ERROR(check_range("columns", r, share.ffn, before.ffn.end, inner_size(hp)));
    RECUA_RETURN_IF_ERROR(check_range("tokens", r, share.vocab, before.vocab.end, hp.vocab_size));
    const Range kv_heads = kv_heads_of(hp, share.heads);
    if (share.kv_heads != kv_heads) {
      return wrong(
          fmt::format("rank {} has the KV heads {} to {}; its query heads {} to {} need {} "
                      "to {}",
                      r, share.kv_heads.begin, share.kv_heads.end, share.heads.begin,
                      share.heads.end, kv_heads.begin, kv_heads.end));
    }
    before = share;
  }
  const Share whole = whole_share(hp);
  if (before.heads.end != whole.heads.end || before.ffn.end != whole.ffn.end ||
      before.vocab.end != whole.vocab.end) {
    return wrong(
        fmt::format("the last of {} ranks ends with query head {}, column {} and token {}; "
                    "expected {}, {} and {}",
                    n_ranks, before.heads.end, before.ffn.end, before.vocab.end, whole.heads.end,
                    whole.ffn.end, whole.vocab.end));
  }
  return ok();
}

}  // namespace recua::model
