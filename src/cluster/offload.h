#pragma once
/// Where work goes that must not run on the control loop: disk and hashing, and the stages
/// themselves.
///
/// The program uses threads; the simulation runs everything on its one loop, at once.

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/thread_pool.hpp>

#include "collective/waiter.h"

namespace recua::cluster {

/// A loop on which one stage lives. The destructor ends its thread.
class StageLoop {
 public:
  StageLoop() = default;
  StageLoop(const StageLoop&) = delete;
  StageLoop& operator=(const StageLoop&) = delete;
  virtual ~StageLoop() = default;
  [[nodiscard]] virtual boost::asio::any_io_executor executor() = 0;
  /// For net::Env::run_one; empty where others live on the loop too.
  [[nodiscard]] virtual std::function<bool()> run_one() { return {}; }
  /// For collective calls of whoever lives on it; null where others do, too.
  [[nodiscard]] virtual std::unique_ptr<collective::Waiter> new_waiter() { return nullptr; }
};

class Offload {
 public:
  Offload() = default;
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;
  virtual ~Offload() = default;

  /// Runs work elsewhere, then resumes the caller on its own loop. What work throws (no memory, no
  /// thread) is thrown there.
  virtual boost::asio::awaitable<void> run(std::function<void()> work) = 0;
  virtual std::unique_ptr<StageLoop> new_stage_loop() = 0;
};

class ThreadOffload final : public Offload {
 public:
  explicit ThreadOffload(std::size_t n_threads) : pool_(n_threads) {}
  ~ThreadOffload() override { pool_.join(); }

  boost::asio::awaitable<void> run(std::function<void()> work) override;
  std::unique_ptr<StageLoop> new_stage_loop() override;
  /// How many of its stage loops have not ended. Whoever owns the loop that they report to runs it
  /// until there are none.
  [[nodiscard]] std::size_t n_stage_loops() const { return *n_stage_loops_; }

 private:
  // Shared with the loops: one may outlive this.
  std::shared_ptr<std::atomic<std::size_t>> n_stage_loops_ =
      std::make_shared<std::atomic<std::size_t>>(0);
  boost::asio::thread_pool pool_;
};

class InlineOffload final : public Offload {
 public:
  explicit InlineOffload(boost::asio::any_io_executor executor) : executor_(std::move(executor)) {}

  boost::asio::awaitable<void> run(std::function<void()> work) override {
    work();
    co_return;
  }
  std::unique_ptr<StageLoop> new_stage_loop() override;

 private:
  boost::asio::any_io_executor executor_;
};

}  // namespace recua::cluster
