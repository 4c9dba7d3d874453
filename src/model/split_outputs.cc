// A request's part of what a rank sends: floats, so that the communicator needs to know one type
// only. Token ids are at most 2^24 and so are exact; log_sum is a double, cut into three floats
// that add up to it.
//
//   max   log_sum[3] = log of the sum of exp(logit)   target's logit   (id, logit) * n_candidates
//
// -infinity stands for a target that another rank has, and for candidates beyond the rank's tokens.
#include "model/split_outputs.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/check.h"
#include "sampling/sampler.h"

namespace recua::model {
namespace {

constexpr float kUnknown = -std::numeric_limits<float>::infinity();
constexpr std::size_t kSumFloats = 3;  // 24 bits each: more than the 53 of a double.
constexpr std::size_t kTargetAt = 1 + kSumFloats;
constexpr std::size_t kCandidatesAt = kTargetAt + 1;
/// Beyond this a row of logits is not much more.
constexpr std::size_t kCandidatesMax = 1024;

/// How many of the largest logits a request looks at, 0 if it may look at any.
std::size_t candidates_of(const OutputRequest& request, std::size_t vocab_size) {
  std::size_t n = 0;
  if (request.kind == OutputRequest::Kind::kScore) n = 1;
  if (request.kind == OutputRequest::Kind::kSample) {
    n = sampling::candidates_needed(request.sampling, vocab_size);
  }
  if (n == 0) return 0;
  n = std::max<std::size_t>(n, request.n_top);
  return n <= kCandidatesMax ? n : 0;
}

void write_double(double value, float* to) {
  for (std::size_t i = 0; i < kSumFloats; ++i) {
    to[i] = static_cast<float>(value);
    value -= static_cast<double>(to[i]);
  }
}

double read_double(const float* from) {
  double value = 0.0;
  for (std::size_t i = kSumFloats; i-- > 0;) value += static_cast<double>(from[i]);
  return value;
}

}  // namespace

SplitOutputs::SplitOutputs(std::span<const Share> shares, std::size_t vocab_size,
                           Communicator& communicator)
    : shares_(shares), communicator_(communicator), logits_(vocab_size, kUnknown) {}

Result<bool> SplitOutputs::exchange(std::span<const OutputRequest> requests, compute::Rows own) {
  RECUA_CHECK(own.n_rows == requests.size());
  begins_.clear();
  n_candidates_.clear();
  std::size_t n_floats = 0;
  for (const OutputRequest& request : requests) {
    const std::size_t n = candidates_of(request, logits_.size());
    if (n == 0) return false;
    begins_.push_back(n_floats);
    n_candidates_.push_back(n);
    n_floats += kCandidatesAt + 2 * n;
  }
  sent_.assign(n_floats, kUnknown);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    write_own(requests[i], {own.row(i), own.n_cols}, n_candidates_[i], sent_.data() + begins_[i]);
  }
  counts_.assign(shares_.size(), n_floats);
  received_.resize(n_floats * shares_.size());
  RECUA_RETURN_IF_ERROR(communicator_.all_gather(sent_, counts_, received_));
  for (std::size_t rank = 0; rank < shares_.size(); ++rank) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (!std::isfinite(part(rank, i)[0])) return false;
    }
  }
  for (std::size_t rank = 0; rank < shares_.size(); ++rank) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      RECUA_RETURN_IF_ERROR(check_part(rank, i));
    }
  }
  return true;
}

Result<void> SplitOutputs::check_part(std::size_t rank, std::size_t i) const {
  const float* const from = part(rank, i);
  const Range own = shares_[rank].vocab;
  bool sound = std::isfinite(read_double(from + 1)) && from[kTargetAt] <= from[0] &&
               from[kCandidatesAt + 1] == from[0];
  for (std::size_t c = 0; sound && c < n_candidates_[i]; ++c) {
    const float id = from[kCandidatesAt + 2 * c];
    const float logit = from[kCandidatesAt + 2 * c + 1];
    if (logit == kUnknown) break;
    sound =
        logit <= from[0] && id >= static_cast<float>(own.begin) && id < static_cast<float>(own.end);
  }
  if (sound) return ok();
  return Error{ErrorCode::kProtocol,
               fmt::format("what rank {} sent of its logits cannot be: expected a finite sum and "
                           "logits of the tokens {} to {} up to {}, the largest first",
                           rank, own.begin, own.end - 1, from[0])};
}

void SplitOutputs::write_own(const OutputRequest& request, std::span<const float> logits,
                             std::size_t n_candidates, float* to) {
  const Range own = shares_[communicator_.rank()].vocab;
  const Result<LogitSummary> summary = summarize(logits);
  if (!summary.ok()) return;  // The maximum stays -infinity: all ranks will look at all logits.
  to[0] = summary->best.logit;
  write_double(summary->log_sum, to + 1);
  const auto target = static_cast<std::uint32_t>(request.target);
  if (target >= own.begin && target < own.end) to[kTargetAt] = logits[target - own.begin];
  sampling::select_largest(logits, n_candidates, largest_);
  float* next = to + kCandidatesAt;
  for (const sampling::Candidate& candidate : largest_) {
    *next++ = static_cast<float>(static_cast<std::uint32_t>(candidate.id) + own.begin);
    *next++ = candidate.logit;
  }
}

SplitOutputs::Row SplitOutputs::row(const OutputRequest& request, std::size_t i) {
  for (const TokenId id : known_) logits_[static_cast<std::size_t>(id)] = kUnknown;
  known_.clear();
  const auto know = [this](TokenId id, float logit) {
    logits_[static_cast<std::size_t>(id)] = logit;
    known_.push_back(id);
  };
  Row out = {.logits = logits_, .summary = {.best = {.id = 0, .logit = kUnknown}, .log_sum = 0.0}};
  for (std::size_t rank = 0; rank < shares_.size(); ++rank) {
    const float* const from = part(rank, i);
    for (std::size_t c = 0; c < n_candidates_[i]; ++c) {
      const float id = from[kCandidatesAt + 2 * c];
      const float logit = from[kCandidatesAt + 2 * c + 1];
      if (logit == kUnknown) break;
      // A rank's largest is its first, and lower ids are on lower ranks.
      if (c == 0 && logit > out.summary.best.logit) {
        out.summary.best = {.id = static_cast<TokenId>(id), .logit = logit};
      }
      know(static_cast<TokenId>(id), logit);
    }
    if (request.kind == OutputRequest::Kind::kScore && from[kTargetAt] > kUnknown) {
      know(request.target, from[kTargetAt]);
    }
  }
  const double max = out.summary.best.logit;
  double sum = 0.0;
  for (std::size_t rank = 0; rank < shares_.size(); ++rank) {
    sum += std::exp(read_double(part(rank, i) + 1) - max);
  }
  out.summary.log_sum = max + std::log(sum);
  return out;
}

}  // namespace recua::model
