#pragma once
/// i mod n, for message i in a ring of n slots. A division takes as long as ten additions, and each
/// message asks several times; most rings have a power of two.

#include <bit>
#include <cstddef>
#include <cstdint>

namespace recua::rpc {

class RingIndex {
 public:
  /// n > 0.
  explicit RingIndex(std::uint64_t n) : n_(n), mask_(std::has_single_bit(n) ? n - 1 : 0) {}

  [[nodiscard]] std::size_t operator()(std::uint64_t i) const {
    return static_cast<std::size_t>(mask_ != 0 ? i & mask_ : i % n_);
  }

 private:
  std::uint64_t n_;
  std::uint64_t mask_;  // 0: n is no power of two, or 1.
};

}  // namespace recua::rpc
