// A row's result depends only on the row, its sequence and the weights: not on the batch it comes
// in, nor on threads, micro-batches, pages, or how the layers are cut into slices. Compared bit by
// bit.
#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "model/local_weight_source.h"
#include "model/test_models.h"

namespace recua::model {
namespace {

constexpr std::uint32_t kSequences = 3;
constexpr std::uint32_t kLength = 40;
constexpr std::uint32_t kPageTokens = 8;

SliceOptions small_options() {
  SliceOptions options = {.n_ctx = 64, .n_pages = 64, .page_tokens = kPageTokens};
  options.n_ubatch = 64;
  return options;
}

std::vector<TokenId> tokens_of(SequenceId seq, std::uint32_t vocab_size) {
  Rng rng(seq + 1);
  std::vector<TokenId> out(kLength);
  for (TokenId& id : out) id = static_cast<TokenId>(rng.below(vocab_size));
  return out;
}

using Logits = std::vector<std::vector<float>>;  // By position.

// The logits of every position of every sequence, fed one token at a time, each sequence alone.
std::vector<Logits> one_by_one(compute::Device& device, const std::string& name) {
  auto executor = LocalExecutor::create(device, open_golden(name), small_options());
  EXPECT_TRUE(executor.ok());
  std::vector<Logits> out(kSequences);
  for (SequenceId seq = 0; seq < kSequences; ++seq) {
    TestSequence sequence{.seq = seq, .first_page = 10 * seq, .page_tokens = kPageTokens};
    for (const TokenId id : tokens_of(seq, (*executor)->info().vocab_size)) {
      StepBatch batch;
      batch.parts.push_back(sequence.next({id}));
      batch.outputs.push_back({.row = 0, .kind = OutputRequest::Kind::kLogits});
      const auto result = (*executor)->run(batch);
      EXPECT_TRUE(result.ok());
      out[seq].push_back(result->outputs[0].logits);
    }
  }
  return out;
}

// A way to feed the same tokens: how many of which sequence come in each step, and which rows are
// asked for, all random; pages too.
struct Schedule {
  std::vector<StepBatch> batches;
  std::vector<std::vector<std::pair<SequenceId, std::uint32_t>>> asked;  // Sequence, position.
};
Schedule random_schedule(std::uint64_t seed, std::uint32_t vocab_size) {
  Rng rng(seed);
  std::vector<TestSequence> sequences;
  for (SequenceId seq = 0; seq < kSequences; ++seq) {
    const auto first_page = static_cast<PageId>(10 * ((seq + seed) % kSequences) + rng.below(4));
    sequences.push_back({.seq = seq, .first_page = first_page, .page_tokens = kPageTokens});
  }
  const std::uint64_t n_max = 1 + rng.below(21);  // At most 63 rows in a step.
  Schedule out;
  while (true) {
    StepBatch batch;
    std::vector<std::pair<SequenceId, std::uint32_t>> asked;
    std::uint32_t row = 0;
    for (TestSequence& sequence : sequences) {
      const std::uint32_t left = kLength - sequence.length;
      const auto n =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(rng.below(n_max + 1), left));
      if (n == 0) continue;
      const std::vector<TokenId> all = tokens_of(sequence.seq, vocab_size);
      const auto begin = all.begin() + sequence.length;
      for (std::uint32_t i = 0; i < n; ++i, ++row) {
        if (rng.below(3) == 0 && i + 1 < n) continue;
        batch.outputs.push_back({.row = row, .kind = OutputRequest::Kind::kLogits});
        asked.emplace_back(sequence.seq, sequence.length + i);
      }
      batch.parts.push_back(sequence.next({begin, begin + n}));
    }
    if (!batch.parts.empty()) {
      out.batches.push_back(std::move(batch));
      out.asked.push_back(std::move(asked));
    }
    if (std::all_of(sequences.begin(), sequences.end(),
                    [](const TestSequence& s) { return s.length == kLength; })) {
      return out;
    }
  }
}

void expect_same_logits(const StepResult& result,
                        const std::vector<std::pair<SequenceId, std::uint32_t>>& asked,
                        const std::vector<Logits>& wanted) {
  ASSERT_EQ(result.outputs.size(), asked.size());
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const auto [seq, position] = asked[i];
    const std::vector<float>& got = result.outputs[i].logits;
    ASSERT_EQ(got.size(), wanted[seq][position].size());
    ASSERT_EQ(std::memcmp(got.data(), wanted[seq][position].data(), got.size() * sizeof(float)), 0)
        << "sequence " << seq << " position " << position;
  }
}

class RowInvariance : public ::testing::TestWithParam<const char*> {};

TEST_P(RowInvariance, HoldsForBatchesMicroBatchesAndThreads) {
  const auto device = test_device(1);
  const std::vector<Logits> wanted = one_by_one(*device, GetParam());
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    const auto other = test_device(1 + seed % 4);
    SliceOptions options = small_options();
    options.n_ubatch = static_cast<std::uint32_t>(1 + rng.below(64));
    options.n_logit_rows = static_cast<std::uint32_t>(1 + rng.below(64));
    auto executor = LocalExecutor::create(*other, open_golden(GetParam()), options);
    ASSERT_TRUE(executor.ok());
    Schedule schedule = random_schedule(seed, (*executor)->info().vocab_size);
    for (std::size_t i = 0; i < schedule.batches.size(); ++i) {
      auto result = run_awaitable((*executor)->step(std::move(schedule.batches[i])));
      ASSERT_TRUE(result.ok()) << result.error().message;
      expect_same_logits(*result, schedule.asked[i], wanted);
      if (HasFatalFailure()) return;
    }
  }
}

// The slices of a model in one process, activations handed on through buffers of the device.
class Pipeline {
 public:
  Pipeline(compute::Device& device, const std::string& name, std::uint32_t n_slices) {
    const auto file = open_golden(name);
    const auto hp = read_hyperparams(*file);
    const LocalWeightSource source(file);
    for (std::uint32_t i = 0; i < n_slices; ++i) {
      const Slice slice = {.layer_begin = hp->n_layers * i / n_slices,
                           .layer_end = hp->n_layers * (i + 1) / n_slices,
                           .n_layers = hp->n_layers};
      auto runner = SliceRunner::create(device, *hp, source, slice, small_options(), communicator_);
      EXPECT_TRUE(runner.ok()) << (runner.ok() ? "" : runner.error().message);
      runners_.push_back(std::move(runner).value());
      hops_.push_back(device.allocate(64 * hp->hidden_size * sizeof(float)).value());
    }
  }

  StepResult run(const StepBatch& batch) {
    StepResult result;
    const std::size_t n = batch.n_rows();
    for (std::size_t i = 0; i < runners_.size(); ++i) {
      const std::size_t hidden = runners_[i]->hidden_size();
      compute::Rows input;
      if (i > 0) input = compute::dense_rows(*hops_[i - 1], n, hidden);
      const auto output = compute::dense_rows(*hops_[i], n, hidden);
      const auto done = runners_[i]->run(batch, input, output, result);
      EXPECT_TRUE(done.ok()) << (done.ok() ? "" : done.error().message);
    }
    return result;
  }

 private:
  SingleRank communicator_;
  std::vector<std::unique_ptr<SliceRunner>> runners_;
  std::vector<std::unique_ptr<compute::Buffer>> hops_;
};

TEST_P(RowInvariance, HoldsForLayerSplits) {
  const auto device = test_device(2);
  const std::vector<Logits> wanted = one_by_one(*device, GetParam());
  const auto hp = read_hyperparams(*open_golden(GetParam()));
  for (const std::uint32_t n_slices : {1U, 2U, 3U, 5U}) {
    if (n_slices > hp->n_layers) continue;
    SCOPED_TRACE(fmt::format("{} slices", n_slices));
    Pipeline pipeline(*device, GetParam(), n_slices);
    const Schedule schedule = random_schedule(77, hp->vocab_size);
    for (std::size_t i = 0; i < schedule.batches.size(); ++i) {
      expect_same_logits(pipeline.run(schedule.batches[i]), schedule.asked[i], wanted);
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, RowInvariance,
    ::testing::Values("models/stories260K.gguf", "random/rnd-llama-bf16.gguf",
                      "random/rnd-llama-f16-gqa-tied-rope3.gguf", "random/rnd-llama-q8_0.gguf",
                      "random/rnd-llama-q5_1.gguf", "random/rnd-llama-q4_k.gguf",
                      "random/rnd-qwen2-f16.gguf", "random/rnd-qwen3-f16.gguf",
                      "random/rnd-mixtral-f16.gguf", "random/rnd-mixtral-q4_0.gguf"));

// So many rows that the feed-forward takes them in pieces, the last of them short: all logits of
// one long micro-batch against those of short ones.
TEST(RowsInPieces, LongMicroBatchesGiveTheBitsOfShortOnes) {
  constexpr std::uint32_t kPromptTokens = 300;
  const auto device = test_device(2);
  const auto logits_of = [&](std::uint32_t n_ubatch) {
    const SliceOptions options = {.n_ctx = 320, .page_tokens = kPageTokens, .n_ubatch = n_ubatch};
    auto executor = LocalExecutor::create(*device, open_golden("models/stories260K.gguf"), options);
    EXPECT_TRUE(executor.ok());
    Rng rng(3);
    std::vector<TokenId> tokens(kPromptTokens);
    for (TokenId& id : tokens) id = static_cast<TokenId>(rng.below((*executor)->info().vocab_size));
    TestSequence sequence{.seq = 0, .first_page = 0, .page_tokens = kPageTokens};
    StepBatch batch;
    batch.parts.push_back(sequence.next(tokens));
    for (std::uint32_t row = 0; row < kPromptTokens; ++row) {
      batch.outputs.push_back({.row = row, .kind = OutputRequest::Kind::kLogits});
    }
    auto result = run_awaitable((*executor)->step(std::move(batch)));
    EXPECT_TRUE(result.ok());
    Logits out;
    for (const auto& output : result->outputs) out.push_back(output.logits);
    return out;
  };
  EXPECT_EQ(logits_of(kPromptTokens), logits_of(70));
}

// Sequence operations: a fork goes on as if it had been fed from the start, and a truncated
// sequence as if the rest had never been.
TEST(SequenceOps, ForksAndTruncatedSequencesContinueAsIfFedAnew) {
  const auto device = test_device(1);
  const std::string name = "models/stories260K.gguf";
  const std::vector<Logits> wanted = one_by_one(*device, name);
  for (const std::uint32_t n_shared : {1U, 7U, 8U, 13U, 16U}) {
    SCOPED_TRACE(fmt::format("{} tokens shared", n_shared));
    auto executor = LocalExecutor::create(*device, open_golden(name), small_options());
    ASSERT_TRUE(executor.ok());
    const std::vector<TokenId> tokens = tokens_of(0, (*executor)->info().vocab_size);
    const auto feed = [&](std::vector<SequenceOp> ops, TestSequence& sequence, TokenId id,
                          bool same) {
      StepBatch batch;
      batch.ops = std::move(ops);
      const std::uint32_t position = sequence.length;
      batch.parts.push_back(sequence.next({id}));
      batch.outputs.push_back({.row = 0, .kind = OutputRequest::Kind::kLogits});
      const auto result = (*executor)->run(batch);
      ASSERT_TRUE(result.ok()) << result.error().message;
      ASSERT_EQ(result->outputs[0].logits == wanted[0][position], same) << position;
    };
    TestSequence original{.seq = 0, .first_page = 0, .page_tokens = kPageTokens};
    StepBatch prompt;
    prompt.parts.push_back(original.next({tokens.begin(), tokens.begin() + 20}));
    ASSERT_TRUE((*executor)->run(prompt).ok());
    // The fork's page for a partly filled last one is 30 + n_shared / 8: where it then goes on.
    TestSequence fork{.seq = 1, .first_page = 30, .page_tokens = kPageTokens, .length = n_shared};
    const SequenceOp fork_op = {.kind = SequenceOp::Kind::kFork,
                                .seq = 1,
                                .source = 0,
                                .n_tokens = n_shared,
                                .page = 30 + n_shared / kPageTokens};
    feed({fork_op}, fork, tokens[n_shared], true);
    for (std::uint32_t i = n_shared + 1; i < 30; ++i) feed({}, fork, tokens[i], true);
    // The original is untouched by what the fork wrote; a wrong token then changes its own result.
    feed({}, original, tokens[20], true);
    feed({}, original, tokens[21] == 5 ? 6 : 5, false);
    const SequenceOp truncate = {.kind = SequenceOp::Kind::kTruncate, .seq = 0, .n_tokens = 21};
    original.length = 21;
    feed({truncate}, original, tokens[21], true);
    // After a free the id and the pages may be used anew, in the same step.
    const SequenceOp free_fork = {.kind = SequenceOp::Kind::kFree, .seq = 1};
    TestSequence again{.seq = 1, .first_page = 30, .page_tokens = kPageTokens};
    feed({free_fork}, again, tokens[0], true);
  }
}

}  // namespace
}  // namespace recua::model
