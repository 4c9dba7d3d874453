#include "cluster/ring_buffer.h"

#include "base/log.h"

namespace recua::cluster {

Result<std::unique_ptr<RingBuffer>> RingBuffer::create(compute::Device* device,
                                                       const rpc::RingShape& shape,
                                                       const rpc::LinkPolicy* policy) {
  auto out = std::make_unique<RingBuffer>();
  const std::size_t bytes = shape.n_slots * shape.slot_bytes;
  if (policy != nullptr && policy->allow_shared_memory) {
    const Result<void> shared = out->share(device, bytes);
    if (shared.ok()) return out;
    log_info("a ring is not shared with other processes: {}", shared.error().message);
  }
  if (device != nullptr) {
    RECUA_ASSIGN_OR_RETURN(out->buffer_, device->allocate(bytes));
    out->bytes_ = {out->buffer_->host(), bytes};
  } else {
    RECUA_ASSIGN_OR_RETURN(out->private_, sys::AlignedBuffer::allocate(bytes));
    out->bytes_ = out->private_.bytes();
  }
  return out;
}

Result<void> RingBuffer::share(compute::Device* device, std::size_t bytes) {
  RECUA_ASSIGN_OR_RETURN(net::shm::SharedMemory shared, net::shm::SharedMemory::create(bytes));
  if (device != nullptr) {
    RECUA_ASSIGN_OR_RETURN(buffer_, device->import(shared.bytes(), nullptr));
  }
  shared_ = std::move(shared);
  bytes_ = shared_.bytes();
  return ok();
}

}  // namespace recua::cluster
