#include "sys/aligned_buffer.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/bytes.h"

namespace recua::sys {
namespace {

constexpr std::size_t kMappedFrom = std::size_t{128} << 10U;

Error out_of_memory(std::size_t bytes) {
  return Error{ErrorCode::kResourceExhausted,
               fmt::format("cannot allocate {} bytes ({:.1f} MiB) of memory", bytes,
                           static_cast<double>(bytes) / (1 << 20))};
}

}  // namespace

Result<AlignedBuffer> AlignedBuffer::allocate(std::size_t bytes, std::size_t huge_from) {
  if (bytes == 0) return AlignedBuffer{};
  if (bytes > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()) - kHugePage) {
    return out_of_memory(bytes);
  }
  if (bytes < kMappedFrom) {
    const std::size_t rounded = align_up(bytes, kAlignment);
    void* memory = std::aligned_alloc(kAlignment, rounded);
    if (memory == nullptr) return out_of_memory(bytes);
    std::memset(memory, 0, rounded);
    return AlignedBuffer(static_cast<std::byte*>(memory), bytes, 0);
  }
  const bool huge = bytes >= std::max(huge_from, kHugePage);
  // Rounded: the kernel begins a mapping of whole huge pages where one can be.
  const std::size_t rounded = huge ? align_up(bytes, kHugePage) : bytes;
  void* memory = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return out_of_memory(bytes);
  auto* const data = static_cast<std::byte*>(memory);
  if (!huge) return AlignedBuffer(data, bytes, bytes);
  // The end, which would not fill a huge page, stays on small ones: what is 94 MB large took 0.7 %
  // more. (Cut off, since some kernels use huge pages wherever they can.)
  const auto small_page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t mapped = align_up(bytes, small_page);
  if (mapped < rounded) munmap(data + mapped, rounded - mapped);
  // A hint only: a kernel without transparent huge pages refuses and nothing is lost.
  (void)madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return AlignedBuffer(data, bytes, mapped);
}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (mapped_ != 0) {
    munmap(data_, mapped_);
  } else {
    std::free(data_);
  }
}

}  // namespace recua::sys
