#pragma once
/// Messages whose header and descriptor follow from the one before them on a lane, so that their
/// rows go alone: both ends keep the last message, each with a class of this file.
/// docs/protocol.md, "RDMA lanes". Threads: one at a time.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "rpc/fast_path.h"
#include "rpc/tensor_header.h"

namespace recua::rpc {

/// The longest descriptor that may follow from the message before.
inline constexpr std::size_t kRowsAloneDescriptorBytesMax = 64;

/// The sender's end.
class LastSent {
 public:
  /// Whether the receiver can tell header and descriptor of `message` by itself.
  [[nodiscard]] bool precedes(const SlotWrite& message) const {
    return !message.rows.empty() && sequence_ + 1 == message.sequence &&
           is_successor(head_, message.head.first<kTensorHeaderBytes>()) &&
           message.descriptor.size() == descriptor_bytes_ &&
           (descriptor_bytes_ == 0 ||
            std::memcmp(message.descriptor.data(), descriptor_.data(), descriptor_bytes_) == 0);
  }
  void set(const SlotWrite& message) {
    sequence_ = message.descriptor.size() <= descriptor_.size() ? message.sequence : kNone;
    if (sequence_ == kNone) return;
    std::ranges::copy(message.head, head_.begin());
    std::ranges::copy(message.descriptor, descriptor_.begin());
    descriptor_bytes_ = message.descriptor.size();
  }

 private:
  static constexpr std::uint64_t kNone = UINT64_MAX - 1;  // Nobody comes after it.

  std::uint64_t sequence_ = kNone;
  std::array<std::byte, kTensorHeaderBytes> head_{};
  std::array<std::byte, kRowsAloneDescriptorBytesMax> descriptor_{};  // Longer ones are sent.
  std::size_t descriptor_bytes_ = 0;
};

/// The receiver's. Not the slot of the message before: that may be the connection's again, which is
/// not in order with the lane.
class LastReceived {
 public:
  /// From here on rows may come alone, or not.
  void begin(bool takes_rows_alone) {
    takes_ = takes_rows_alone;
    header_.reset();
  }
  /// A message that came whole; its header is checked.
  void set(const TensorHeader& header, std::span<const std::byte> descriptor) {
    header_.reset();
    if (!takes_ || descriptor.size() > kRowsAloneDescriptorBytesMax) return;
    header_ = header;
    descriptor_.assign(descriptor.begin(), descriptor.end());
  }
  /// The header of `message`, whose rows came alone, and which is the last one now. Nothing: the
  /// last one was not the one before it, or has no rows.
  std::optional<TensorHeader> advance(std::uint64_t message) {
    const bool follows = header_ && header_->sequence + 1 == message;
    if (!follows || header_->n_rows == 0 || header_->row_bytes == 0) return std::nullopt;
    header_ = successor(*header_);
    return header_;
  }
  /// Of the last message.
  [[nodiscard]] const std::vector<std::byte>& descriptor() const { return descriptor_; }

 private:
  bool takes_ = false;
  std::optional<TensorHeader> header_;
  std::vector<std::byte> descriptor_;
};

}  // namespace recua::rpc
