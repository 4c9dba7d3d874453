#include "engine/fake_executor.h"

#include <algorithm>
#include <span>

#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "base/random.h"

namespace recua::engine {

namespace asio = boost::asio;
using model::OutputRequest;
using model::SequenceOp;

namespace {

std::uint64_t hash(std::span<const TokenId> tokens) {
  std::uint64_t state = tokens.size();
  for (const TokenId id : tokens) state = mix(state, static_cast<std::uint64_t>(id));
  return state;
}

}  // namespace

TokenId fake_next_token(std::span<const TokenId> tokens, std::uint64_t seed,
                        std::uint32_t vocab_size) {
  return static_cast<TokenId>(mix(hash(tokens), seed) % vocab_size);
}

float fake_logprob(std::span<const TokenId> tokens, TokenId id) {
  return -static_cast<float>(mix(hash(tokens), static_cast<std::uint64_t>(id)) % 4096) / 256.0F;
}

asio::awaitable<Result<model::StepResult>> FakeExecutor::step(model::StepBatch batch) {
  const std::size_t index = n_steps_++;
  const int hops = n_hops ? n_hops() : 0;
  for (int i = 0; i < hops; ++i) {
    auto loop = co_await asio::this_coro::executor;
    co_await asio::post(loop, asio::use_awaitable);
  }
  std::optional<Error> error;
  if (fault) error = fault(index, batch);
  if (error && error->code == ErrorCode::kCachesLost) {
    sequences_.clear();
    used_.clear();
  }
  if (error && !half_done) co_return *error;
  model::StepResult result;
  const std::optional<std::string> offence = apply(batch, result);
  if (error) co_return *error;
  if (offence) {
    offences_.push_back(*offence);
    co_return Error{ErrorCode::kInvalidArgument, *offence};
  }
  most_parts_ = std::max(most_parts_, batch.parts.size());
  co_return result;
}

std::optional<std::string> FakeExecutor::apply(const model::StepBatch& batch,
                                               model::StepResult& result) {
  if (batch.n_rows() > info_.n_batch) return fmt::format("{} rows", batch.n_rows());
  for (const SequenceOp& op : batch.ops) {
    const auto found = sequences_.find(op.seq);
    if (op.kind != SequenceOp::Kind::kFree || found == sequences_.end())
      return fmt::format("operation on sequence {}", op.seq);
    for (const model::PageId page : found->second.pages) used_.erase(page);
    sequences_.erase(found);
  }
  std::set<model::SequenceId> seen;
  struct Row {
    const Sequence* sequence;
    std::size_t n_tokens;
  };
  std::vector<Row> rows;
  for (const model::SequencePart& part : batch.parts) {
    if (auto offence = append(part, seen)) return offence;
    const Sequence& sequence = sequences_.at(part.seq);
    for (std::size_t i = 0; i < part.tokens.size(); ++i)
      rows.push_back({&sequence, part.position + i + 1});
  }
  std::int64_t last_row = -1;
  for (const OutputRequest& output : batch.outputs) {
    if (output.row >= rows.size() || output.row <= last_row)
      return fmt::format("output of row {}", output.row);
    last_row = output.row;
    const Row& row = rows[output.row];
    const std::span<const TokenId> tokens(row.sequence->tokens.data(), row.n_tokens);
    const TokenId id = output.kind == OutputRequest::Kind::kScore
                           ? output.target
                           : fake_next_token(tokens, output.sampling.seed, info_.vocab_size);
    result.outputs.push_back({.row = output.row, .id = id, .logprob = fake_logprob(tokens, id)});
    for (std::uint32_t k = 0; k < output.n_top; ++k) {
      const auto top = static_cast<TokenId>(k);
      result.outputs.back().top.push_back({top, fake_logprob(tokens, top)});
    }
  }
  return std::nullopt;
}

std::optional<std::string> FakeExecutor::append(const model::SequencePart& part,
                                                std::set<model::SequenceId>& seen) {
  if (!seen.insert(part.seq).second) return fmt::format("sequence {} twice", part.seq);
  if (part.tokens.empty()) return fmt::format("sequence {}: no tokens", part.seq);
  if ((part.position == 0) != (sequences_.count(part.seq) == 0))
    return fmt::format("sequence {} begins at {}", part.seq, part.position);
  Sequence& sequence = sequences_[part.seq];
  if (part.position != sequence.tokens.size())
    return fmt::format("sequence {}: position {}, has {} tokens", part.seq, part.position,
                       sequence.tokens.size());
  sequence.tokens.insert(sequence.tokens.end(), part.tokens.begin(), part.tokens.end());
  if (sequence.tokens.size() > info_.n_ctx)
    return fmt::format("sequence {} has {} tokens", part.seq, sequence.tokens.size());
  for (const model::PageId page : part.new_pages) {
    if (page >= info_.n_pages || !used_.insert(page).second)
      return fmt::format("sequence {}: page {} is not free", part.seq, page);
    sequence.pages.push_back(page);
  }
  const std::size_t n_needed = (sequence.tokens.size() + info_.page_tokens - 1) / info_.page_tokens;
  if (sequence.pages.size() != n_needed)
    return fmt::format("sequence {}: {} pages for {} tokens", part.seq, sequence.pages.size(),
                       sequence.tokens.size());
  return std::nullopt;
}

}  // namespace recua::engine
