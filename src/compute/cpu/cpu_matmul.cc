// Products with stored weights. The team divides the weight rows, so that each weight is read once
// and each output written by one thread.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/cpu/cpu_device_impl.h"

namespace recua::compute {
namespace {

// Weight rows of one kernel call for many tokens: they stay in the second-level cache while the
// tokens pass (256 KiB is the smallest such cache in use).
constexpr std::size_t kWeightChunkBytes = std::size_t{64} << 10U;
// Threads meet at multiples of a cache line of outputs, which are whole groups of packed weights.
constexpr std::size_t kRowGranule = 16;
static_assert(kRowGranule % kernels::kPackedRows == 0);

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

}  // namespace

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

void CpuDevice::moe_route(Rows logits, bool renormalize, const Route& route) {
  check_rows(logits);
  const std::size_t n_experts = logits.n_cols;
  RECUA_CHECK(route.n_used >= 1 && route.n_used <= n_experts);
  RECUA_CHECK(route.ids->bytes() >= logits.n_rows * route.n_used * sizeof(std::int32_t));
  RECUA_CHECK(route.weights->bytes() >= logits.n_rows * route.n_used * sizeof(float));
  for (std::size_t t = 0; t < logits.n_rows; ++t) {
    const float* row = logits.row(t);
    taken_.assign(n_experts, false);
    for (std::size_t u = 0; u < route.n_used; ++u) {
      std::size_t best = n_experts;
      for (std::size_t e = 0; e < n_experts; ++e) {
        if (!taken_[e] && (best == n_experts || row[e] > row[best])) best = e;
      }
      taken_[best] = true;
    }
    const float max = *std::max_element(row, row + n_experts);
    double sum = 0.0;
    for (std::size_t e = 0; e < n_experts; ++e) {
      if (taken_[e] || !renormalize) sum += std::exp(static_cast<double>(row[e] - max));
    }
    auto* ids = reinterpret_cast<std::int32_t*>(route.ids->host()) + t * route.n_used;
    auto* weights = reinterpret_cast<float*>(route.weights->host()) + t * route.n_used;
    std::size_t u = 0;
    for (std::size_t e = 0; e < n_experts; ++e) {
      if (!taken_[e]) continue;
      ids[u] = static_cast<std::int32_t>(e);
      weights[u] = static_cast<float>(std::exp(static_cast<double>(row[e] - max)) / sum);
      ++u;
    }
  }
}

// Pairs of token and expert are sorted by expert (a counting sort, so stable), and each expert's
// matrix then meets all its tokens at once.
void CpuDevice::moe_matmul(const Weight& weight, Rows x, const Route& route, Rows out) {
  const CpuWeight& w = as_cpu(weight);
  check_rows(x);
  check_rows(out);
  const std::size_t n_pairs = out.n_rows;
  RECUA_CHECK(route.n_used >= 1 && n_pairs % route.n_used == 0);
  RECUA_CHECK(x.n_rows == n_pairs || x.n_rows * route.n_used == n_pairs);
  RECUA_CHECK(x.n_cols == w.n_in() && out.n_cols == w.n_out());
  RECUA_CHECK(route.ids->bytes() >= n_pairs * sizeof(std::int32_t));
  if (n_pairs == 0) return;
  prepare_activations(w.activation_kind(table_), x);

  const auto* ids = reinterpret_cast<const std::int32_t*>(route.ids->host());
  expert_begin_.assign(w.n_experts() + 1, 0);
  for (std::size_t p = 0; p < n_pairs; ++p) {
    RECUA_CHECK(ids[p] >= 0 && static_cast<std::size_t>(ids[p]) < w.n_experts());
    ++expert_begin_[static_cast<std::size_t>(ids[p]) + 1];
  }
  for (std::size_t e = 0; e < w.n_experts(); ++e) {
    expert_begin_[e + 1] += expert_begin_[e];
  }
  expert_next_ = expert_begin_;
  x_sorted_.resize(n_pairs);
  out_rows_.resize(n_pairs);
  const std::size_t pairs_per_x = n_pairs / x.n_rows;
  for (std::size_t p = 0; p < n_pairs; ++p) {
    const std::size_t place = expert_next_[static_cast<std::size_t>(ids[p])]++;
    x_sorted_[place] = x_rows_[p / pairs_per_x];
    out_rows_[place] = out.row(p);
  }

  const kernels::MatmulFn kernel = w.kernel(table_);
  run(n_pairs * w.n_out() * w.row_bytes(), [&](std::size_t thread, std::size_t n_threads) {
    const sys::Partition rows = sys::partition(w.n_out(), thread, n_threads, kRowGranule);
    for (std::size_t e = 0; e < w.n_experts(); ++e) {
      const std::size_t begin = expert_begin_[e];
      const std::size_t n = expert_begin_[e + 1] - begin;
      if (n == 0) continue;
      const kernels::MatmulArgs args{.w = nullptr,
                                     .w_stride = w.stride(),
                                     .n_rows = 0,
                                     .n_in = w.n_in(),
                                     .x = x_sorted_.data() + begin,
                                     .out = out_rows_.data() + begin,
                                     .out_offset = 0,
                                     .n_tokens = n};
      multiply_rows(kernel, w, e, rows, args);
    }
  });
}

void CpuDevice::moe_combine(Rows x, const Route& route, Rows out) {
  check_rows(x);
  check_rows(out);
  RECUA_CHECK(x.n_rows == out.n_rows * route.n_used && x.n_cols == out.n_cols);
  RECUA_CHECK(route.weights->bytes() >= x.n_rows * sizeof(float));
  const float* weights = floats(*route.weights);
  for_rows(out.n_rows, route.n_used * x.n_cols * sizeof(float), [&](std::size_t t) {
    std::memset(out.row(t), 0, out.n_cols * sizeof(float));
    for (std::size_t u = 0; u < route.n_used; ++u) {
      const std::size_t pair = t * route.n_used + u;
      table_.scale_add(weights[pair], x.row(pair), x.n_cols, out.row(t));
    }
  });
}

}  // namespace recua::compute
