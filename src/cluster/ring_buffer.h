#pragma once
/// The memory of a ring: shared with processes of the same host where links may use that, so that
/// a sender there writes into it directly, else private. A device's operators read rows where they
/// arrive, either way.

#include <memory>
#include <span>

#include "base/result.h"
#include "compute/device.h"
#include "net/shm/shared_memory.h"
#include "rpc/link.h"
#include "sys/aligned_buffer.h"

namespace recua::cluster {

class RingBuffer {
 public:
  /// device null: memory that only the host reads. policy null: private memory.
  /// kResourceExhausted.
  static Result<std::unique_ptr<RingBuffer>> create(compute::Device* device,
                                                    const rpc::RingShape& shape,
                                                    const rpc::LinkPolicy* policy);

  /// Of a ring that was made with a device.
  [[nodiscard]] compute::Buffer* buffer() const { return buffer_.get(); }
  [[nodiscard]] rpc::RingMemory memory() const {
    return {.bytes = bytes_, .shared_fd = shared_.fd()};
  }

 private:
  Result<void> share(compute::Device* device, std::size_t bytes);

  net::shm::SharedMemory shared_;  // Either this
  sys::AlignedBuffer private_;     // or this, or the device's.
  std::unique_ptr<compute::Buffer> buffer_;
  std::span<std::byte> bytes_;
};

}  // namespace recua::cluster
