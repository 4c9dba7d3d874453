// Packing weights as they are loaded (docs/decisions/0008-repacked-weights.md).
#include <algorithm>
#include <array>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "compute/cpu/cpu_device_impl.h"
#include "quant/dequantize.h"

namespace recua::compute {
namespace {

// Untouched memory of a block costs nothing, so a small model pays for what it uses only.
constexpr std::size_t kBlockBytes = std::size_t{64} << 20U;

// Of the mapped file, as much as this (or a group) may be in memory beside its packed copy, per
// thread.
constexpr std::size_t kPackBytes = std::size_t{1} << 20U;

// A page that is missed brings its mapped neighbours along, also those that were dropped already:
// without dropping them again 3 % of a file stayed.
constexpr std::size_t kFaultAroundBytes = std::size_t{64} << 10U;

// Bytes of a row that are unpacked at a time when a row is read.
constexpr std::size_t kReadBytes = 2048;

}  // namespace

Result<WeightMemory::Piece> WeightMemory::take(std::size_t bytes) {
  const std::size_t needed = align_up(bytes, sys::AlignedBuffer::kAlignment);
  if (needed >= kBlockBytes) {  // Alone, so that the rest of the present block stays in use.
    RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer memory, sys::AlignedBuffer::allocate(needed));
    auto block = std::make_shared<const sys::AlignedBuffer>(std::move(memory));
    const std::span<std::byte> all = block->bytes().first(bytes);
    return Piece{.block = std::move(block), .bytes = all};
  }
  if (block_ == nullptr || block_->size() - used_ < needed) {
    RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer memory, sys::AlignedBuffer::allocate(kBlockBytes));
    block_ = std::make_shared<const sys::AlignedBuffer>(std::move(memory));
    used_ = 0;
  }
  const std::span<std::byte> piece = block_->bytes().subspan(used_, bytes);
  used_ += needed;
  return Piece{.block = block_, .bytes = piece};
}

void CpuWeight::dequantize_row(std::size_t out, float* to) const {
  if (!is_packed()) return quant::dequantize_row(type(), at(0, out), n_in(), to);
  const quant::DataTypeTraits traits = quant::traits(type());
  std::array<std::byte, kReadBytes> blocks;
  const std::size_t n_at_once = blocks.size() / traits.block_bytes;
  const std::size_t n_blocks = n_in() / traits.block_size;
  for (std::size_t b = 0; b < n_blocks; b += n_at_once) {
    const std::size_t n = std::min(n_at_once, n_blocks - b);
    kernels::unpack_blocks(type(), at(0, out), out % group_rows(), b, n, blocks.data());
    quant::dequantize_row(type(), blocks.data(), n * traits.block_size, to + b * traits.block_size);
  }
}

Result<std::unique_ptr<Weight>> CpuDevice::pack_weight(TensorBytes tensor) {
  const std::size_t group_bytes = kernels::packed_group_bytes(tensor.type, tensor.n_in);
  const std::size_t group_rows = kernels::packed_rows(tensor.type);
  const std::size_t row_bytes = group_bytes / group_rows;
  const std::size_t expert_groups = kernels::n_packed_groups(tensor.type, tensor.n_out);
  const std::size_t n_groups = tensor.n_experts * expert_groups;
  Result<WeightMemory::Piece> memory = weight_memory_.take(n_groups * group_bytes);
  if (!memory.ok()) {
    return std::move(memory).error().within("the packed copy of tensor \"" + tensor.name + "\"");
  }
  const WeightMemory::Piece& packed = memory.value();
  const std::size_t n_at_once = std::max<std::size_t>(1, kPackBytes / group_bytes);
  const auto first_row = [&](std::size_t group) {
    return group / expert_groups * tensor.n_out +
           std::min(tensor.n_out, group % expert_groups * group_rows);
  };
  const auto pack = [&](std::size_t begin, std::size_t end) {
    for (std::size_t g = begin; g < end; ++g) {
      const std::size_t left = tensor.n_out - g % expert_groups * group_rows;
      kernels::pack_group(tensor.type, tensor.bytes.data() + first_row(g) * row_bytes,
                          std::min(group_rows, left), tensor.n_in,
                          packed.bytes.data() + g * group_bytes);
    }
    if (!tensor.in_mapped_file) return;
    const std::size_t first = first_row(begin) * row_bytes;
    const std::size_t from = first - std::min(first, kFaultAroundBytes);
    drop_mapped_pages(tensor.bytes.subspan(from, first_row(end) * row_bytes - from));
  };
  run(tensor.bytes.size(), [&](std::size_t thread, std::size_t n_threads) {
    // Those rows that are the thread's share in matmul(): with several memories, a page is in that
    // of the CPU which touches it first.
    const sys::Partition part = sys::partition(expert_groups, thread, n_threads,
                                               std::max(kRowGranule, group_rows) / group_rows);
    for (std::size_t expert = 0; expert < tensor.n_experts; ++expert) {
      const std::size_t last = expert * expert_groups + part.end;
      for (std::size_t g = expert * expert_groups + part.begin; g < last; g += n_at_once) {
        pack(g, std::min(last, g + n_at_once));
      }
    }
  });
  tensor.bytes = {};
  tensor.owner = nullptr;
  return std::make_unique<CpuWeight>(std::move(tensor), std::move(memory).value());
}

}  // namespace recua::compute
