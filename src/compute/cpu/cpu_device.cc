// Making the device, its memory, and the operators that go row by row.
#include "compute/cpu/cpu_device.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/bytes.h"
#include "compute/cpu/cpu_device_impl.h"
#include "quant/dequantize.h"
#include "sys/cpu_features.h"
#include "sys/topology.h"

namespace recua::compute {
namespace {

constexpr std::size_t kThreadsMax = 1024;

// Rows of a micro-batch are often used in part only, such as those of the logits of many tokens, of
// which one is asked for; caches and the rows of large models are larger.
constexpr std::size_t kHugeRowsFrom = std::size_t{16} << 20U;

// The byte count that a tensor's shape asks for, or why there is none.
Result<void> check_tensor(const TensorBytes& tensor) {
  const quant::DataTypeTraits traits = quant::traits(tensor.type);
  const auto fail = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor \"{}\", type {}, shape [{}, {}, {}]: {}", tensor.name,
                             traits.name, tensor.n_experts, tensor.n_out, tensor.n_in, what)};
  };
  if (traits.block_bytes == 0) return fail("this type is unknown");
  if (tensor.n_in == 0 || tensor.n_out == 0 || tensor.n_experts == 0) {
    return fail("a dimension is 0");
  }
  if (tensor.n_in % traits.block_size != 0) {
    return fail(fmt::format("a row of {} elements is no multiple of the type's block of {}",
                            tensor.n_in, traits.block_size));
  }
  const auto row = checked_mul(tensor.n_in / traits.block_size, traits.block_bytes);
  const auto matrix = row ? checked_mul(*row, tensor.n_out) : row;
  const auto total = matrix ? checked_mul(*matrix, tensor.n_experts) : matrix;
  if (!total) return fail("its size overflows");
  if (*total != tensor.bytes.size()) {
    return fail(fmt::format("has {} bytes, the shape needs {}", tensor.bytes.size(), *total));
  }
  return ok();
}

}  // namespace

Result<std::unique_ptr<Device>> make_cpu_device(const CpuDeviceOptions& options) {
  RECUA_ASSIGN_OR_RETURN(const sys::InstructionSet set,
                         sys::choose_instruction_set(options.instruction_set));
  if (options.n_threads > kThreadsMax) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("{} threads: at most {} can be used", options.n_threads, kThreadsMax)};
  }
  const std::size_t n_threads =
      options.n_threads != 0
          ? options.n_threads
          : std::min(kThreadsMax, sys::default_thread_count(sys::detect_topology()));
  return std::make_unique<CpuDevice>(kernels::kernel_table(set), n_threads, options.repack,
                                     options.cpus);
}

void check_rows(const Rows& rows) {
  if (rows.n_rows == 0) return;
  RECUA_CHECK(rows.buffer != nullptr && rows.buffer->host() != nullptr);
  RECUA_CHECK(rows.stride >= rows.n_cols || rows.n_rows == 1);
  RECUA_CHECK(rows.offset + (rows.n_rows - 1) * rows.stride + rows.n_cols <=
              rows.buffer->bytes() / sizeof(float));
}

std::byte* Scratch::at_least(std::size_t bytes) {
  if (bytes > memory_.size()) {
    memory_ = {};  // First give back, then take: both at once may not fit.
    Result<sys::AlignedBuffer> memory = sys::AlignedBuffer::allocate(bytes);
    RECUA_CHECK(memory.ok());
    memory_ = std::move(memory).value();
  }
  return memory_.data();
}

std::string CpuDevice::description() const {
  return fmt::format("cpu {}, {} thread{}", sys::to_string(table_.instruction_set),
                     pool_.n_threads(), pool_.n_threads() == 1 ? "" : "s");
}

Result<std::unique_ptr<Buffer>> CpuDevice::allocate(std::size_t bytes) {
  RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer memory,
                         sys::AlignedBuffer::allocate(bytes, kHugeRowsFrom));
  return std::make_unique<CpuBuffer>(std::move(memory));
}

Result<std::unique_ptr<Buffer>> CpuDevice::import(std::span<std::byte> host_memory,
                                                  std::shared_ptr<const void> owner) {
  // The kernels load whole vectors from the start of a row, as they may from memory of ours.
  const auto address = reinterpret_cast<std::uintptr_t>(host_memory.data());
  if (address % sys::AlignedBuffer::kAlignment != 0) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("memory to import begins {} bytes after a multiple of {}: it must "
                    "begin on one",
                    address % sys::AlignedBuffer::kAlignment, sys::AlignedBuffer::kAlignment)};
  }
  return std::make_unique<CpuImportedBuffer>(host_memory, std::move(owner));
}

Result<std::unique_ptr<Weight>> CpuDevice::load_weight(TensorBytes bytes) {
  RECUA_RETURN_IF_ERROR(check_tensor(bytes));
  if (repack_ && table_.packed_matmul(bytes.type) != nullptr) return pack_weight(std::move(bytes));
  return std::make_unique<CpuWeight>(std::move(bytes));
}

Result<std::unique_ptr<Buffer>> CpuDevice::load_vector(const TensorBytes& bytes) {
  RECUA_RETURN_IF_ERROR(check_tensor(bytes));
  if (bytes.n_out != 1 || bytes.n_experts != 1) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("tensor \"{}\": a vector is needed, found shape [{}, {}, {}]",
                             bytes.name, bytes.n_experts, bytes.n_out, bytes.n_in)};
  }
  RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer memory,
                         sys::AlignedBuffer::allocate(bytes.n_in * sizeof(float)));
  quant::dequantize_row(bytes.type, bytes.bytes.data(), bytes.n_in,
                        reinterpret_cast<float*>(memory.data()));
  return std::make_unique<CpuBuffer>(std::move(memory));
}

void CpuDevice::embed(const Weight& table, std::int32_t first_id, std::span<const std::int32_t> ids,
                      Rows out) {
  const CpuWeight& w = as_cpu(table);
  check_rows(out);
  RECUA_CHECK(out.n_rows == ids.size() && out.n_cols == w.n_in());
  for_rows(ids.size(), w.n_in() * sizeof(float), [&](std::size_t r) {
    const std::int64_t row = std::int64_t{ids[r]} - first_id;
    if (row >= 0 && static_cast<std::size_t>(row) < w.n_out()) {
      w.dequantize_row(static_cast<std::size_t>(row), out.row(r));
    } else {
      std::memset(out.row(r), 0, w.n_in() * sizeof(float));
    }
  });
}

void CpuDevice::add_bias(Rows x, const Buffer& bias) {
  check_rows(x);
  RECUA_CHECK(bias.bytes() >= x.n_cols * sizeof(float));
  for_rows(x.n_rows, x.n_cols * sizeof(float),
           [&](std::size_t r) { table_.add(x.row(r), floats(bias), x.n_cols, x.row(r)); });
}

void CpuDevice::rms_norm(Rows x, const Buffer& weight, float eps, Rows out) {
  check_rows(x);
  check_rows(out);
  RECUA_CHECK(x.n_rows == out.n_rows && x.n_cols == out.n_cols && x.n_cols > 0);
  RECUA_CHECK(weight.bytes() >= x.n_cols * sizeof(float));
  for_rows(x.n_rows, 2 * x.n_cols * sizeof(float), [&](std::size_t r) {
    table_.rms_norm(x.row(r), floats(weight), x.n_cols, eps, out.row(r));
  });
}

void CpuDevice::silu_mul(Rows gate, Rows up, Rows out) {
  check_rows(gate);
  check_rows(up);
  check_rows(out);
  RECUA_CHECK(gate.n_rows == up.n_rows && gate.n_rows == out.n_rows);
  RECUA_CHECK(gate.n_cols == up.n_cols && gate.n_cols == out.n_cols);
  for_rows(gate.n_rows, 3 * gate.n_cols * sizeof(float), [&](std::size_t r) {
    table_.silu_mul(gate.row(r), up.row(r), gate.n_cols, out.row(r));
  });
}

void CpuDevice::add(Rows a, Rows b, Rows out) {
  check_rows(a);
  check_rows(b);
  check_rows(out);
  RECUA_CHECK(a.n_rows == b.n_rows && a.n_rows == out.n_rows);
  RECUA_CHECK(a.n_cols == b.n_cols && a.n_cols == out.n_cols);
  for_rows(a.n_rows, 3 * a.n_cols * sizeof(float),
           [&](std::size_t r) { table_.add(a.row(r), b.row(r), a.n_cols, out.row(r)); });
}

void CpuDevice::gather_rows(Rows x, std::span<const std::uint32_t> rows, Rows out) {
  check_rows(x);
  check_rows(out);
  RECUA_CHECK(out.n_rows == rows.size() && out.n_cols == x.n_cols);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    RECUA_CHECK(rows[r] < x.n_rows);
    std::memcpy(out.row(r), x.row(rows[r]), x.n_cols * sizeof(float));
  }
}

}  // namespace recua::compute
