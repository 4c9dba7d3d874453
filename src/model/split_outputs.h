#pragma once
/// Outputs of a tensor split without a row of logits on the wire: each rank has the logits of its
/// own tokens, and tells the others its largest ones and what it knows of the row's sum.
///
/// That is enough, to the bit, for greedy choices, for sampling with top_k and no biases or
/// penalties, and for scores; other requests need all logits (ForwardPass::gather_logits()).
/// Threads: one at a time.

#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "base/result.h"
#include "compute/device.h"
#include "model/communicator.h"
#include "model/executor.h"
#include "model/outputs.h"
#include "model/slice.h"
#include "sampling/logits.h"

namespace recua::model {

class SplitOutputs {
 public:
  /// Both are borrowed. shares: all ranks'.
  SplitOutputs(std::span<const Share> shares, std::size_t vocab_size, Communicator& communicator);

  /// One exchange for a row per request. own: the rank's logits, visible to the host.
  /// False: all logits are needed, since a request looks at any of them or since some are no
  /// numbers; the same on every rank. kProtocol: a rank sent what cannot be (names it). Other
  /// errors are the communicator's.
  Result<bool> exchange(std::span<const OutputRequest> requests, compute::Rows own);

  struct Row {
    std::span<const float> logits = {};  // [vocab_size], -infinity where they are not known.
    LogitSummary summary = {};
  };
  /// What OutputMaker takes for request i of the last exchange, which gave true. Valid until the
  /// next call.
  Row row(const OutputRequest& request, std::size_t i);

 private:
  void write_own(const OutputRequest& request, std::span<const float> logits,
                 std::size_t n_candidates, float* to);
  [[nodiscard]] Result<void> check_part(std::size_t rank, std::size_t i) const;
  [[nodiscard]] const float* part(std::size_t rank, std::size_t i) const {
    return received_.data() + rank * sent_.size() + begins_[i];
  }

  std::span<const Share> shares_;
  Communicator& communicator_;
  std::vector<std::size_t> begins_;  // Where each request's part begins in what a rank sends.
  std::vector<std::size_t> n_candidates_;
  std::vector<float> sent_;
  std::vector<float> received_;  // Rank after rank.
  std::vector<std::size_t> counts_;
  std::vector<sampling::Candidate> largest_;
  std::vector<float> logits_;
  std::vector<TokenId> known_;  // The entries of logits_ that are not -infinity.
};

}  // namespace recua::model
