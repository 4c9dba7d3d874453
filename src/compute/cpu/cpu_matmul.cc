// Products with stored weights. The team divides the weight rows, so that each weight is read once
// and each output written by one thread.
#include <algorithm>

#include "compute/cpu/cpu_device_impl.h"

namespace recua::compute {
namespace {

// Weight rows of one kernel call for many tokens: they stay in the second-level cache while the
// tokens pass (256 KiB is the smallest such cache in use).
constexpr std::size_t kWeightChunkBytes = std::size_t{64} << 10U;

}  // namespace

void multiply_rows(kernels::MatmulFn kernel, const CpuWeight& w, std::size_t expert,
                   sys::Partition rows, kernels::MatmulArgs args) {
  std::size_t chunk = rows.size();
  if (args.n_tokens > 1 && !w.is_packed()) {  // Packed kernels do it themselves.
    chunk = std::max(kRowGranule, kWeightChunkBytes / w.row_bytes() / kRowGranule * kRowGranule);
  }
  for (std::size_t begin = rows.begin; begin < rows.end; begin += chunk) {
    args.w = w.at(expert, begin);
    args.n_rows = std::min(chunk, rows.end - begin);
    args.out_offset = begin;
    kernel(args);
  }
}

void CpuDevice::prepare_activations(kernels::ActivationKind kind, Rows x) {
  x_rows_.resize(x.n_rows);
  if (kind == kernels::ActivationKind::kF32) {
    for (std::size_t r = 0; r < x.n_rows; ++r) {
      x_rows_[r] = reinterpret_cast<const std::byte*>(x.row(r));
    }
    return;
  }
  const std::size_t row_bytes = kernels::activation_row_bytes(kind, x.n_cols);
  std::byte* const memory = activations_.at_least(x.n_rows * row_bytes);
  const kernels::QuantizeFn quantize = table_.quantize(kind);
  for_rows(x.n_rows, x.n_cols * sizeof(float), [&](std::size_t r) {
    quantize(x.row(r), x.n_cols, memory + r * row_bytes);
    x_rows_[r] = memory + r * row_bytes;
  });
}

void CpuDevice::matmul(const Weight& weight, Rows x, Rows out) {
  const CpuWeight& w = as_cpu(weight);
  check_rows(x);
  check_rows(out);
  RECUA_CHECK(x.n_rows == out.n_rows && x.n_cols == w.n_in() && out.n_cols == w.n_out());
  if (x.n_rows == 0) return;
  prepare_activations(w.activation_kind(table_), x);
  out_rows_.resize(out.n_rows);
  for (std::size_t r = 0; r < out.n_rows; ++r) out_rows_[r] = out.row(r);

  const kernels::MatmulFn kernel = w.kernel(table_);
  const kernels::MatmulArgs args{.w = nullptr,
                                 .w_stride = w.stride(),
                                 .n_rows = 0,
                                 .n_in = w.n_in(),
                                 .x = x_rows_.data(),
                                 .out = out_rows_.data(),
                                 .out_offset = 0,
                                 .n_tokens = x.n_rows};
  run(w.n_out() * w.row_bytes() * x.n_rows, [&](std::size_t thread, std::size_t n_threads) {
    const sys::Partition rows = sys::partition(w.n_out(), thread, n_threads, kRowGranule);
    multiply_rows(kernel, w, 0, rows, args);
  });
}

}  // namespace recua::compute
