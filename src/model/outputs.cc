#include "model/outputs.h"

namespace recua::model {

Result<LogitSummary> summarize(std::span<const float> logits) {
  RECUA_ASSIGN_OR_RETURN(const sampling::Candidate best, sampling::largest(logits));
  return LogitSummary{.best = best, .log_sum = sampling::log_sum_exp(logits, best.logit)};
}

Result<StepOutput> OutputMaker::make(const OutputRequest& request, std::span<const float> logits,
                                     const LogitSummary& summary,
                                     std::span<const TokenId> history) {
  const auto logprob = [&](TokenId id) {
    const double logit = logits[static_cast<std::size_t>(id)];
    return static_cast<float>(logit - summary.log_sum);
  };
  StepOutput out;
  out.row = request.row;
  switch (request.kind) {
    case OutputRequest::Kind::kSample: {
      if (sampling::candidates_needed(request.sampling, logits.size()) == 1) {
        out.id = summary.best.id;  // The one that is needed is the largest.
        break;
      }
      const auto position = static_cast<std::uint32_t>(history.size() - 1);
      RECUA_ASSIGN_OR_RETURN(out.id, sampler_.choose(logits, history, position, request.sampling));
      break;
    }
    case OutputRequest::Kind::kScore:
      out.id = request.target;
      break;
    case OutputRequest::Kind::kLogits:
      out.id = summary.best.id;
      out.logits.assign(logits.begin(), logits.end());
      break;
  }
  out.logprob = logprob(out.id);
  if (request.n_top > 0) {
    sampling::select_largest(logits, request.n_top, top_);
    out.top.reserve(top_.size());
    for (const sampling::Candidate& c : top_) {
      out.top.push_back({.id = c.id, .logprob = logprob(c.id)});
    }
  }
  return out;
}

}  // namespace recua::model
