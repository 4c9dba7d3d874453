#pragma once
/// Ranks of a tensor split in the threads of one process: communicators that meet in memory, and
/// the runners of a model cut into layer ranges and ranks. Included by tests only.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "model/communicator.h"
#include "model/local_weight_source.h"
#include "model/slice_runner.h"
#include "model/test_models.h"

namespace recua::model {

/// n communicators, one per thread. A rank that leaves ends the epoch for all.
class TestGroup {
 public:
  struct Options {
    bool overlaps = false;
    std::size_t calls_max = SIZE_MAX;  // All-reduces after which they fail, as if a rank was lost.
  };

  TestGroup(std::uint32_t n_ranks, const Options& options) : options_(options) {
    for (std::uint32_t r = 0; r < n_ranks; ++r) {
      ranks_.push_back(std::make_unique<Rank>(*this, r));
    }
    sent_.resize(n_ranks);
  }

  [[nodiscard]] Communicator& rank(std::uint32_t r) { return *ranks_[r]; }
  [[nodiscard]] std::size_t n_reduces() const { return ranks_[0]->n_reduces; }
  /// Whoever waits, or comes to wait, gets kUnavailable.
  void leave() {
    const std::lock_guard lock(mutex_);
    broken_ = true;
    changed_.notify_all();
  }

 private:
  class Rank final : public Communicator {
   public:
    Rank(TestGroup& group, std::uint32_t rank) : group_(group), rank_(rank) {}
    [[nodiscard]] std::uint32_t rank() const override { return rank_; }
    [[nodiscard]] std::uint32_t n_ranks() const override {
      return static_cast<std::uint32_t>(group_.ranks_.size());
    }
    [[nodiscard]] bool overlaps() const override { return group_.options_.overlaps; }

    Result<void> all_reduce(std::span<float> values) override {
      EXPECT_TRUE(begun_.empty()) << "a call between begin and finish";
      if (++n_reduces > group_.options_.calls_max) return lost();
      if (!group_.meet(rank_, values)) return lost();
      sum_.assign(values.size(), 0.0F);
      for (const std::span<const float> part : group_.sent_) {
        EXPECT_EQ(part.size(), values.size()) << "ranks reduce different rows";
        for (std::size_t i = 0; i < sum_.size(); ++i) sum_[i] += part[i];
      }
      if (!group_.wait()) return lost();
      std::copy(sum_.begin(), sum_.end(), values.begin());
      return ok();
    }
    Result<void> begin_all_reduce(std::span<float> values) override {
      EXPECT_TRUE(begun_.empty()) << "begun twice";
      begun_ = values;
      return ok();
    }
    Result<void> finish_all_reduce() override {
      return all_reduce(std::exchange(begun_, std::span<float>()));
    }
    Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t> counts,
                            std::span<float> out) override {
      EXPECT_EQ(counts.size(), n_ranks());
      EXPECT_EQ(counts[rank_], mine.size());
      if (!group_.meet(rank_, mine)) return lost();
      auto* to = out.data();
      for (std::size_t r = 0; r < counts.size(); ++r) {
        EXPECT_EQ(group_.sent_[r].size(), counts[r]) << "from rank " << r;
        to = std::copy(group_.sent_[r].begin(), group_.sent_[r].end(), to);
      }
      EXPECT_EQ(to, out.data() + out.size());
      return group_.wait() ? ok() : lost();
    }
    Result<void> broadcast(std::span<float> values, std::uint32_t root) override {
      if (!group_.meet(rank_, values)) return lost();
      const std::vector<float> sent(group_.sent_[root].begin(), group_.sent_[root].end());
      if (!group_.wait()) return lost();
      std::copy(sent.begin(), sent.end(), values.begin());
      return ok();
    }
    Result<void> barrier() override { return group_.wait() ? ok() : lost(); }

    std::size_t n_reduces = 0;

   private:
    static Result<void> lost() { return Error{ErrorCode::kUnavailable, "a rank is gone"}; }

    TestGroup& group_;
    std::uint32_t rank_;
    std::vector<float> sum_;
    std::span<float> begun_;
  };

  /// Waits until all are here with what they send; the others read it until they wait again.
  bool meet(std::uint32_t rank, std::span<const float> sent) {
    {
      const std::lock_guard lock(mutex_);
      sent_[rank] = sent;
    }
    return wait();
  }
  /// False: somebody is gone, or late by a minute.
  bool wait() {
    std::unique_lock lock(mutex_);
    const std::uint64_t round = round_;
    if (++n_here_ == ranks_.size()) {
      n_here_ = 0;
      ++round_;
      changed_.notify_all();
    }
    const auto done = [&] { return broken_ || round_ != round; };
    if (!changed_.wait_for(lock, std::chrono::minutes(1), done)) broken_ = true;
    return round_ != round;
  }

  Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t n_here_ = 0;
  std::uint64_t round_ = 0;
  bool broken_ = false;
  std::vector<std::span<const float>> sent_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

inline void expect_same_bits(std::span<const float> a, std::span<const float> b,
                             const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  if (a.empty()) return;
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size_bytes()), 0) << what;
}

/// Layer ranges that end before the layers in `cuts`, each on as many ranks as there are shares.
class SplitModel {
 public:
  SplitModel(const std::shared_ptr<const gguf::GgufFile>& file, std::vector<Share> shares,
             std::vector<std::uint32_t> cuts, const SliceOptions& options,
             const TestGroup::Options& group_options = {})
      : n_ranks_(static_cast<std::uint32_t>(shares.size())) {
    const auto hp = read_hyperparams(*file);
    EXPECT_TRUE(hp.ok());
    hidden_size_ = hp->hidden_size;
    cuts.push_back(hp->n_layers);
    const LocalWeightSource source(file);
    for (std::uint32_t r = 0; r < n_ranks_; ++r) devices_.push_back(test_device());
    std::uint32_t begin = 0;
    for (const std::uint32_t end : cuts) {
      Range range = {
          .group = std::make_unique<TestGroup>(n_ranks_, group_options), .runners = {}, .rows = {}};
      for (std::uint32_t r = 0; r < n_ranks_; ++r) {
        const Slice slice = {.layer_begin = begin,
                             .layer_end = end,
                             .n_layers = hp->n_layers,
                             .rank = r,
                             .n_ranks = n_ranks_,
                             .shares = shares};
        auto runner =
            SliceRunner::create(*devices_[r], *hp, source, slice, options, range.group->rank(r));
        EXPECT_TRUE(runner.ok()) << (runner.ok() ? "" : runner.error().message);
        range.runners.push_back(std::move(runner).value());
        range.rows.push_back(
            devices_[r]->allocate(options.n_ubatch * hidden_size_ * sizeof(float)).value());
      }
      ranges_.push_back(std::move(range));
      begin = end;
    }
  }

  /// One batch on all ranks at once. What the ranks give must be the same to the bit.
  Result<StepResult> run(const StepBatch& batch) {
    std::vector<std::optional<Result<StepResult>>> results(n_ranks_);
    std::vector<std::jthread> threads;
    for (std::uint32_t r = 0; r < n_ranks_; ++r) {
      threads.emplace_back([this, r, &batch, &results] { results[r] = run_rank(r, batch); });
    }
    threads.clear();
    for (std::uint32_t r = 0; r < n_ranks_; ++r) {
      EXPECT_EQ(results[r]->ok(), results[0]->ok()) << "rank " << r;
      if (!results[r]->ok()) return *results[r];
      compare(**results[0], **results[r], fmt::format("rank {}", r));
    }
    for (std::size_t i = 0; i + 1 < ranges_.size(); ++i) {
      for (std::uint32_t r = 1; r < n_ranks_; ++r) {
        const std::size_t n = batch.n_rows() * hidden_size_;
        expect_same_bits(rows_of(ranges_[i], 0, n), rows_of(ranges_[i], r, n),
                         fmt::format("hidden states of rank {}", r));
      }
    }
    return *results[0];
  }

  [[nodiscard]] std::size_t n_reduces() const { return ranges_[0].group->n_reduces(); }

 private:
  struct Range {
    std::unique_ptr<TestGroup> group;
    std::vector<std::unique_ptr<SliceRunner>> runners;   // Per rank.
    std::vector<std::unique_ptr<compute::Buffer>> rows;  // Their output.
  };

  static std::span<const float> rows_of(const Range& range, std::uint32_t rank, std::size_t n) {
    return {reinterpret_cast<const float*>(range.rows[rank]->host()), n};
  }

  Result<StepResult> run_rank(std::uint32_t rank, const StepBatch& batch) {
    StepResult result;
    compute::Rows input;
    for (Range& range : ranges_) {
      const compute::Rows output =
          compute::dense_rows(*range.rows[rank], batch.n_rows(), hidden_size_);
      const Result<void> done = range.runners[rank]->run(batch, input, output, result);
      if (!done.ok()) {
        for (Range& any : ranges_) any.group->leave();
        return done.error();
      }
      input = output;
    }
    return result;
  }

  static void compare(const StepResult& a, const StepResult& b, const std::string& what) {
    ASSERT_EQ(a.outputs.size(), b.outputs.size()) << what;
    for (std::size_t i = 0; i < a.outputs.size(); ++i) {
      EXPECT_EQ(a.outputs[i].id, b.outputs[i].id) << what << " output " << i;
      EXPECT_EQ(a.outputs[i].logprob, b.outputs[i].logprob) << what << " output " << i;
      EXPECT_EQ(a.outputs[i].top, b.outputs[i].top) << what << " output " << i;
      expect_same_bits(a.outputs[i].logits, b.outputs[i].logits, what);
    }
  }

  std::uint32_t n_ranks_;
  std::size_t hidden_size_ = 0;
  std::vector<std::unique_ptr<compute::Device>> devices_;
  std::vector<Range> ranges_;
};

}  // namespace recua::model
