#include "train/rank_trainer.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "collective/test_group.h"
#include "train/test_run.h"

namespace recua::train {
namespace {

struct GroupOptions {
  std::uint32_t n_ranks = 2;
  bool overlaps = true;
  std::size_t bucket_floats_min = 4096;  // Several buckets in a small model.
  std::size_t n_threads = 1;
};

/// All that a step leaves, as whoever leads the run sees it.
struct StepState {
  std::vector<float> gradient;
  double loss = 0.0;  // Mean.
  double norm = 0.0;
};

class RankTrainerTest : public TestRun {
 protected:
  /// What the leader of a run does, with the ranks on threads and what it sends in memory.
  class Group {
   public:
    Group(RankTrainerTest& test, const Trainer& trainer, const GroupOptions& group_options)
        : trainer_(trainer), n_ranks_(group_options.n_ranks) {
      if (n_ranks_ > 1) {
        collective::TestGroupOptions options;
        options.n_ranks = n_ranks_;
        links_ = std::make_unique<collective::TestGroup>(std::move(options));
      }
      for (std::uint32_t r = 0; r < n_ranks_; ++r) {
        const TrainerOptions& run = trainer.options();
        const RankOptions options{.rank = r,
                                  .n_ranks = n_ranks_,
                                  .batch = (run.batch + n_ranks_ - 1) / n_ranks_,
                                  .n_ctx = run.n_ctx,
                                  .adam = run.adam,
                                  .overlaps = group_options.overlaps,
                                  .bucket_floats_min = group_options.bucket_floats_min};
        teams_.push_back(std::make_unique<Team>(team(group_options.n_threads)));
        ranks_.push_back(*RankTrainer::create(*teams_.back(), test.shape_, options));
        take_state(*ranks_.back(), r);
      }
    }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;
    ~Group() { ranks_.clear(); }

    /// The next step of the trainer, whose own numbers stay as they are.
    StepState step() {
      const std::size_t n_examples = trainer_.examples_per_step();
      std::size_t n_counted = 0;
      std::vector<Example> examples;
      for (std::size_t i = 0; i < n_examples; ++i) {
        examples.push_back(trainer_.next_example(i));
        for (const std::uint8_t one : examples.back().counts) n_counted += one != 0 ? 1 : 0;
      }
      StepState out;
      out.gradient.resize(trainer_.layout().n_params());
      std::vector<RankSums> sums(n_ranks_);
      std::vector<std::jthread> threads;
      for (std::uint32_t r = 0; r < n_ranks_; ++r) {
        RankStep step{.step = n_steps_,
                      .lr = trainer_.options().schedule.at(n_steps_),
                      .scale = static_cast<float>(1.0 / static_cast<double>(n_counted))};
        const sys::Partition own = examples_of(n_examples, r, n_ranks_);
        step.examples.assign(examples.begin() + static_cast<std::ptrdiff_t>(own.begin),
                             examples.begin() + static_cast<std::ptrdiff_t>(own.end));
        threads.emplace_back([this, r, &out, &sums, step = std::move(step)] {
          RankTrainer& rank = *ranks_[r];
          collective::ChannelCommunicator* const communicator =
              links_ == nullptr ? nullptr : links_->ranks[r]->communicator.get();
          const auto reduced = [&](const RankSums& own_sums) {
            sums[r] = own_sums;
            rank.shards().for_range(r, 0, rank.shard_gradient().size(),
                                    [&](std::size_t at, std::size_t in_shard, std::size_t n) {
                                      std::copy_n(rank.shard_gradient().data() + in_shard, n,
                                                  out.gradient.data() + at);
                                    });
          };
          const auto done = rank.step(step, communicator, reduced);
          EXPECT_TRUE(done.ok()) << done.error().message;
        });
      }
      threads.clear();
      ++n_steps_;
      for (const RankSums& one : sums) out.loss += one.loss / static_cast<double>(n_counted);
      out.norm = gradient_norm(sums);
      return out;
    }

    [[nodiscard]] std::vector<float> params(std::uint32_t rank) const {
      return copy(ranks_[rank]->params());
    }

   private:
    void take_state(RankTrainer& rank, std::uint32_t r) {
      std::ranges::copy(trainer_.params(), rank.params().begin());
      rank.shards().for_range(
          r, 0, rank.m().size(), [&](std::size_t at, std::size_t in_shard, std::size_t n) {
            std::copy_n(trainer_.state().m.data() + at, n, rank.m().data() + in_shard);
            std::copy_n(trainer_.state().v.data() + at, n, rank.v().data() + in_shard);
          });
    }

    const Trainer& trainer_;
    std::uint32_t n_ranks_;
    std::uint64_t n_steps_ = 0;
    std::unique_ptr<collective::TestGroup> links_;
    std::vector<std::unique_ptr<Team>> teams_;
    std::vector<std::unique_ptr<RankTrainer>> ranks_;
  };

  Trainer begun(Team& team) {
    Trainer out = trainer(team);
    out.layout().initialize(5, out.params());
    return out;
  }
};

double largest(std::span<const float> values) {
  double out = 0.0;
  for (const float value : values) out = std::max(out, static_cast<double>(std::fabs(value)));
  return out;
}

TEST(Shards, CoverEachParameterOnce) {
  ModelShape shape;
  shape.hp.architecture = model::find_architecture("qwen3");
  shape.hp.vocab_size = 77;
  shape.hp.n_layers = 5;
  shape.hp.hidden_size = 24;
  shape.hp.n_heads = shape.hp.n_kv_heads = 3;
  shape.hp.head_dim = shape.hp.rope_dim = 8;
  shape.hp.ffn_size = 40;
  shape.qk_norm = true;
  for (const bool tied : {false, true}) {
    shape.tied = tied;
    const ParameterLayout layout(shape);
    for (const std::uint32_t n_ranks : {1U, 2U, 3U, 7U, 64U}) {
      for (const std::size_t bucket_min : {std::size_t{1}, std::size_t{9000}, kBucketFloatsMin}) {
        SCOPED_TRACE(testing::Message() << n_ranks << " ranks, buckets of " << bucket_min);
        const Shards shards(layout, n_ranks, bucket_min);
        std::vector<int> n_owners(layout.n_params());
        std::size_t largest_shard = 0;
        for (std::uint32_t r = 0; r < n_ranks; ++r) {
          std::size_t next = 0;
          shards.for_range(r, 0, shards.size(r),
                           [&](std::size_t at, std::size_t in_shard, std::size_t n) {
                             EXPECT_EQ(in_shard, next);
                             next += n;
                             for (std::size_t i = 0; i < n; ++i) ++n_owners[at + i];
                           });
          EXPECT_EQ(next, shards.size(r));
          largest_shard = std::max(largest_shard, next);
          // Any range is the same pieces, cut.
          std::size_t in_range = 0;
          const std::size_t begin = shards.size(r) / 3;
          const std::size_t n_asked = shards.size(r) / 2;
          shards.for_range(r, begin, n_asked,
                           [&](std::size_t, std::size_t in_shard, std::size_t n) {
                             EXPECT_EQ(in_shard, begin + in_range);
                             in_range += n;
                           });
          EXPECT_EQ(in_range, n_asked);
        }
        EXPECT_EQ(std::ranges::count(n_owners, 1), static_cast<std::ptrdiff_t>(n_owners.size()));
        EXPECT_LE(largest_shard, layout.n_params() / n_ranks + 32 * shards.buckets().size());
      }
    }
  }
}

// Sums over all examples on one side, over ranks of sums over their examples on the other: the
// difference is what adding in another order makes.
TEST_F(RankTrainerTest, FirstGradientAgreesWithOneProcess) {
  Team one = team(1);
  for (const std::uint32_t n_ranks : {1U, 2U, 3U}) {
    SCOPED_TRACE(n_ranks);
    Trainer alone = begun(one);
    Group group(*this, alone, {.n_ranks = n_ranks});
    const StepState state = group.step();
    const auto report = alone.step();
    ASSERT_TRUE(report.ok());
    EXPECT_NEAR(state.loss, report->loss, 1e-6);
    EXPECT_NEAR(state.norm, report->grad_norm, 1e-5 * report->grad_norm);
    const double bound = 1e-5 * largest(alone.gradients());
    ASSERT_GT(bound, 0.0);
    double worst = 0.0;
    for (std::size_t i = 0; i < state.gradient.size(); ++i) {
      worst = std::max(worst, std::fabs(double{state.gradient[i]} - alone.gradients()[i]));
    }
    EXPECT_LE(worst, bound);
    for (std::uint32_t r = 1; r < n_ranks; ++r) EXPECT_EQ(group.params(r), group.params(0));
  }
}

TEST_F(RankTrainerTest, TheOnlyRankHasTheBitsOfOneProcess) {
  options_.adam.clip_norm = 0.01;  // So the gradient's length is in every parameter.
  Team one = team(1);
  Trainer alone = begun(one);
  Group group(*this, alone, {.n_ranks = 1});
  for (int i = 0; i < 3; ++i) {
    const StepState state = group.step();
    const auto report = alone.step();
    ASSERT_TRUE(report.ok());
    EXPECT_EQ(state.norm, report->grad_norm);
    ASSERT_EQ(group.params(0), copy(alone.params())) << "step " << i + 1;
  }
}

TEST_F(RankTrainerTest, LossCurveAgreesWithOneProcessFor200Steps) {
  options_.schedule = {.lr = 1e-3, .lr_final = 1e-4, .n_warmup = 10, .n_steps = 200};
  Team one = team(1);
  Trainer alone = begun(one);
  Group group(*this, alone, {.n_ranks = 2});
  double first = 0.0;
  double last = 0.0;
  for (int i = 0; i < 200; ++i) {
    const StepState state = group.step();
    const auto report = alone.step();
    ASSERT_TRUE(report.ok());
    ASSERT_NEAR(state.loss, report->loss, 1e-3) << "step " << i + 1;
    if (i == 0) first = report->loss;
    last = report->loss;
  }
  EXPECT_LT(last, first - 1.0);  // It learned something meanwhile.
}

// The leader updates its own copy from the shards' gradients: it is what is left when ranks are
// lost, so it must be what they have, to the bit.
TEST_F(RankTrainerTest, GradientsOfShardsGiveTheRanksParameters) {
  Team one = team(1);
  Trainer leader = begun(one);
  Group group(*this, leader, {.n_ranks = 3});
  for (int i = 0; i < 5; ++i) {
    const StepState state = group.step();
    std::ranges::copy(state.gradient, leader.gradients().begin());
    ASSERT_TRUE(
        leader.finish_step({.n_counted = 1, .loss = state.loss, .grad_norm = state.norm}).ok());
    ASSERT_EQ(group.params(0), copy(leader.params())) << "step " << i + 1;
  }
}

TEST_F(RankTrainerTest, AStepEndsBeforeItsNextPass) {
  Team one = team(1);
  auto rank = *RankTrainer::create(one, shape_, {.batch = 1, .n_ctx = kCtx});
  const Trainer leader = begun(one);
  std::ranges::copy(leader.params(), rank->params().begin());
  const std::vector<float> before = copy(rank->params());
  rank->stop();
  const auto ended = rank->step({.lr = 1e-3, .scale = 1.0F, .examples = {leader.next_example(0)}},
                                nullptr, [](const RankSums&) { FAIL() << "it was computed"; });
  ASSERT_FALSE(ended.ok());
  EXPECT_EQ(ended.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(copy(rank->params()), before);
}

TEST_F(RankTrainerTest, BitsDependOnTheNumberOfRanksOnly) {
  Team one = team(1);
  options_.accumulate = 2;
  const Trainer leader = begun(one);
  const auto run = [&](const GroupOptions& options) {
    Group group(*this, leader, options);
    group.step();
    return group.params(0);
  };
  const std::vector<float> expected = run({.n_ranks = 2, .overlaps = false});
  EXPECT_EQ(run({.n_ranks = 2}), expected);
  EXPECT_EQ(run({.n_ranks = 2, .n_threads = 2}), expected);
  EXPECT_NE(run({.n_ranks = 1}), expected);
}

}  // namespace
}  // namespace recua::train
