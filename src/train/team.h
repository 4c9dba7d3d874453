#pragma once
/// The threads and kernels that training computes with, and the scratch memory of each thread.
///
/// Every operator of this folder divides its work so that each result is summed by one thread in
/// one fixed order: the same bits for any number of threads (within one instruction set).
/// Threads: one thread calls a Team.

#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "base/result.h"
#include "kernels/kernel_table.h"
#include "sys/aligned_buffer.h"
#include "sys/thread_pool.h"

namespace recua::train {

/// n zeroed floats, 64-byte aligned. Move-only.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  /// kResourceExhausted: no memory for them.
  static Result<FloatBuffer> allocate(std::size_t n);

  [[nodiscard]] float* data() const { return reinterpret_cast<float*>(memory_.data()); }
  [[nodiscard]] std::size_t size() const { return n_; }
  [[nodiscard]] std::span<float> span() const { return {data(), n_}; }

 private:
  FloatBuffer(sys::AlignedBuffer memory, std::size_t n) : memory_(std::move(memory)), n_(n) {}
  sys::AlignedBuffer memory_;
  std::size_t n_ = 0;
};

class Team {
 public:
  /// n_threads counts the caller. kResourceExhausted: no memory for scratch.
  static Result<Team> create(std::size_t n_threads, sys::InstructionSet set);

  [[nodiscard]] std::size_t n_threads() const { return pool_->n_threads(); }
  [[nodiscard]] const kernels::KernelTable& kernels() const { return *kernels_; }

  /// fn(begin, end) on parts of [0, n) that cover it once.
  template <class Fn>
  void for_parts(std::size_t n, Fn&& fn) {
    pool_->run([&](std::size_t thread, std::size_t n_threads) {
      const sys::Partition part = sys::partition(n, thread, n_threads);
      if (!part.empty()) fn(part.begin, part.end);
    });
  }
  /// fn(i, thread) for each i of [0, n), dealt out in turn.
  template <class Fn>
  void for_each(std::size_t n, Fn&& fn) {
    pool_->run([&](std::size_t thread, std::size_t n_threads) {
      for (std::size_t i = thread; i < n; i += n_threads) fn(i, thread);
    });
  }

  /// The product on all threads; args.scratch is set here.
  void gemm(const kernels::GemmArgs& args);
  /// A thread's kGemmScratchFloats, for products that a thread does alone.
  [[nodiscard]] float* gemm_scratch(std::size_t thread) const {
    return gemm_scratch_.data() + thread * kernels::kGemmScratchFloats;
  }

 private:
  Team() = default;
  std::unique_ptr<sys::ThreadPool> pool_;
  const kernels::KernelTable* kernels_ = nullptr;
  FloatBuffer gemm_scratch_;
};

}  // namespace recua::train
