// A tensor split without a network: n ranks of one thread each, in one process, whose sums meet in
// memory, beside the same model on one rank of n threads. What is lost here no transport gives
// back.
//
//   recua synth model.gguf --type Q4_0     split_bench model.gguf [ranks] [rounds]
//
// Prints medians of rounds that take turns: prefill of 512 rows, decode of one, and how much of the
// decode step the ranks spent in the communicator (waiting for each other included).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "compute/cpu/cpu_device.h"
#include "median.h"
#include "model/local_weight_source.h"
#include "model/slice_runner.h"

namespace recua {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Ranks that spin until all are there.
class SpinGroup {
 public:
  explicit SpinGroup(std::uint32_t n) : sent_(n) {
    for (std::uint32_t r = 0; r < n; ++r) ranks_.push_back(std::make_unique<Rank>(*this, r));
  }
  model::Communicator& rank(std::uint32_t r) { return *ranks_[r]; }
  double take_seconds() { return std::exchange(ranks_[0]->seconds, 0.0); }

 private:
  class Rank final : public model::Communicator {
   public:
    Rank(SpinGroup& group, std::uint32_t rank) : group_(group), rank_(rank) {}
    [[nodiscard]] std::uint32_t rank() const override { return rank_; }
    [[nodiscard]] std::uint32_t n_ranks() const override {
      return static_cast<std::uint32_t>(group_.ranks_.size());
    }
    Result<void> all_reduce(std::span<float> values) override {
      const Clock::time_point begin = Clock::now();
      group_.sent_[rank_] = values;
      group_.meet();
      sum_.assign(values.size(), 0.0F);
      for (const std::span<const float> part : group_.sent_) {
        for (std::size_t i = 0; i < sum_.size(); ++i) sum_[i] += part[i];
      }
      group_.meet();
      std::copy(sum_.begin(), sum_.end(), values.begin());
      seconds += seconds_since(begin);
      return ok();
    }
    Result<void> all_gather(std::span<const float> mine, std::span<const std::size_t>,
                            std::span<float> out) override {
      const Clock::time_point begin = Clock::now();
      group_.sent_[rank_] = mine;
      group_.meet();
      float* to = out.data();
      for (const auto part : group_.sent_) to = std::copy(part.begin(), part.end(), to);
      group_.meet();
      seconds += seconds_since(begin);
      return ok();
    }
    Result<void> broadcast(std::span<float>, std::uint32_t) override { return ok(); }
    Result<void> barrier() override { return ok(); }

    double seconds = 0.0;

   private:
    SpinGroup& group_;
    std::uint32_t rank_;
    std::vector<float> sum_;
  };

  void meet() {
    const std::uint64_t round = round_.load();
    if (n_here_.fetch_add(1) + 1 == ranks_.size()) {
      n_here_.store(0);
      round_.store(round + 1);
    } else {
      while (round_.load() == round) __builtin_ia32_pause();
    }
  }

  alignas(64) std::atomic<std::uint64_t> round_{0};
  alignas(64) std::atomic<std::size_t> n_here_{0};
  std::vector<std::span<const float>> sent_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

template <class T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.error().message.c_str());
    std::exit(1);
  }
  return std::move(result).value();
}

constexpr std::uint32_t kPrefill = 512;
constexpr std::uint32_t kDecode = 32;

/// One model on n_ranks ranks of n_threads threads.
class Model {
 public:
  Model(const std::shared_ptr<const gguf::GgufFile>& file, std::uint32_t n_ranks,
        std::size_t n_threads)
      : group_(n_ranks) {
    const model::HyperParams hp = must(model::read_hyperparams(*file));
    const model::LocalWeightSource source(file);
    const std::vector<double> speeds(n_ranks, 1.0);
    for (std::uint32_t r = 0; r < n_ranks; ++r) {
      devices_.push_back(must(compute::make_cpu_device({.n_threads = n_threads})));
      model::Slice slice = {.layer_end = hp.n_layers, .n_layers = hp.n_layers, .rank = r};
      slice.n_ranks = n_ranks;
      slice.shares = must(model::divide(hp, speeds));
      const model::SliceOptions options = {.n_ctx = 1024};
      runners_.push_back(must(model::SliceRunner::create(*devices_.back(), hp, source, slice,
                                                         options, group_.rank(r))));
    }
    for (std::uint32_t r = 1; r < n_ranks; ++r) threads_.emplace_back([this, r] { serve(r); });
  }
  ~Model() {
    stop_ = true;
    begin_step();
  }

  /// Seconds of the prefill, and of one decode step.
  std::pair<double, double> measure() {
    model::StepBatch batch;
    batch.parts.push_back({.seq = 0, .tokens = std::vector<model::TokenId>(kPrefill, 7)});
    for (model::PageId p = 0; p < kPrefill / 32; ++p) batch.parts[0].new_pages.push_back(p);
    batch.outputs.push_back({.row = kPrefill - 1, .sampling = {.temperature = 0.0F}});
    Clock::time_point begin = Clock::now();
    run(batch);
    const double prefill = seconds_since(begin);
    group_.take_seconds();
    begin = Clock::now();
    for (std::uint32_t i = 0; i < kDecode; ++i) {
      model::StepBatch one;
      one.parts.push_back({.seq = 0, .position = kPrefill + i, .tokens = {9}});
      if (i == 0) one.parts[0].new_pages = {kPrefill / 32};
      one.outputs.push_back({.row = 0, .sampling = {.temperature = 0.0F}});
      run(one);
    }
    const double decode = seconds_since(begin) / kDecode;
    communicator_seconds = group_.take_seconds() / kDecode;
    model::StepBatch free;
    free.ops.push_back({.kind = model::SequenceOp::Kind::kFree, .seq = 0});
    run(free);
    return {prefill, decode};
  }

  double communicator_seconds = 0.0;

 private:
  void run(const model::StepBatch& batch) {
    batch_ = &batch;
    n_done_ = 0;
    begin_step();
    work(0);
    while (n_done_.load() < threads_.size()) __builtin_ia32_pause();
  }
  void begin_step() {
    ++step_;
    step_.notify_all();
  }
  void work(std::uint32_t rank) {
    model::StepResult result;
    const Result<void> done = runners_[rank]->run(*batch_, {}, {}, result);
    if (!done.ok()) {
      std::fprintf(stderr, "%s\n", done.error().message.c_str());
      std::exit(1);
    }
  }
  void serve(std::uint32_t rank) {
    for (std::uint64_t seen = 0;;) {
      step_.wait(seen);
      ++seen;
      if (stop_) return;
      work(rank);
      ++n_done_;
      // Spins into the next step, but between measurements another model has the processors.
      for (int i = 0; i < 100000 && step_.load() == seen; ++i) __builtin_ia32_pause();
      step_.wait(seen);
    }
  }

  SpinGroup group_;
  std::vector<std::unique_ptr<compute::Device>> devices_;
  std::vector<std::unique_ptr<model::SliceRunner>> runners_;
  const model::StepBatch* batch_ = nullptr;
  std::atomic<bool> stop_{false};
  std::atomic<std::uint64_t> step_{0};
  std::atomic<std::size_t> n_done_{0};
  std::vector<std::jthread> threads_;
};

int run(const char* path, std::uint32_t n_ranks, int n_rounds) {
  const auto file = std::make_shared<const gguf::GgufFile>(must(gguf::GgufFile::open(path)));
  Model threads(file, 1, n_ranks);
  Model ranks(file, n_ranks, 1);
  std::vector<double> prefill[2];
  std::vector<double> decode[2];
  std::vector<double> waited;
  for (int i = 0; i <= n_rounds; ++i) {
    for (int which = 0; which < 2; ++which) {
      const auto [p, d] = (which == 0 ? threads : ranks).measure();
      if (i == 0) continue;  // Pages come in.
      prefill[which].push_back(p);
      decode[which].push_back(d);
      if (which == 1) waited.push_back(ranks.communicator_seconds);
    }
  }
  const char* const names[] = {"threads", "ranks"};
  for (int which = 0; which < 2; ++which) {
    fmt::print("{} {:<8} prefill {:8.1f} t/s   decode {:8.2f} t/s\n", n_ranks, names[which],
               kPrefill / median(prefill[which]), 1.0 / median(decode[which]));
  }
  fmt::print("ranks / threads  prefill {:.3f}  decode {:.3f}   in the communicator {:.1f} %\n",
             median(prefill[0]) / median(prefill[1]), median(decode[0]) / median(decode[1]),
             100.0 * median(waited) / median(decode[1]));
  return 0;
}

}  // namespace
}  // namespace recua

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: split_bench MODEL.gguf [RANKS] [ROUNDS]\n");
    return 2;
  }
  const auto n_ranks = static_cast<std::uint32_t>(argc > 2 ? std::atoi(argv[2]) : 2);
  return recua::run(argv[1], n_ranks, argc > 3 ? std::atoi(argv[3]) : 5);
}
