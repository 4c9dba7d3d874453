// Feed-forward by experts. A matrix meets all tokens that chose its expert at once; the others are
// not read.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/cpu/cpu_device_impl.h"

namespace recua::compute {
namespace {

// Whole experts to threads are worth it when that leaves nobody idle for longer than the hand-overs
// take that it saves (2 us, in which a thread reads 32 KiB), or for no more than what is gained by
// keeping an expert's rows in one core's cache (1 to 2 % with two threads).
constexpr double kUnevenMax = 0.01;
constexpr double kHandOverBytes = 32768.0;

// Below so many granules of rows per thread, an even share of each expert would leave threads idle.
constexpr std::size_t kGranulesPerThread = 8;

using RowList = std::vector<float*>;

void place_rows(const ExpertPlan& plan, Rows rows, RowList& out) {
  out.resize(rows.n_rows);
  for (std::size_t place = 0; place < rows.n_rows; ++place) out[place] = rows.row(plan.pair(place));
}

/// Some rows of an expert's matrix times the tokens at these places.
void multiply_expert(const kernels::KernelTable& table, const CpuWeight& w, std::size_t expert,
                     sys::Partition rows, sys::Partition places,
                     const std::vector<const std::byte*>& x, const RowList& out) {
  multiply_rows(table, w, expert, rows, std::span(x).subspan(places.begin, places.size()),
                std::span(out).subspan(places.begin, places.size()));
}

}  // namespace

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

void CpuDevice::plan_experts(const CpuWeight& w, const Route& route, std::size_t n_pairs) {
  RECUA_CHECK(route.n_used >= 1 && n_pairs % route.n_used == 0 && n_pairs % x_rows_.size() == 0);
  RECUA_CHECK(x_rows_.size() == n_pairs || x_rows_.size() * route.n_used == n_pairs);
  RECUA_CHECK(route.ids->bytes() >= n_pairs * sizeof(std::int32_t));
  expert_plan_.sort({reinterpret_cast<const std::int32_t*>(route.ids->host()), n_pairs},
                    w.n_experts());
  const std::size_t pairs_per_x = n_pairs / x_rows_.size();
  expert_rows_.x.resize(n_pairs);
  for (std::size_t place = 0; place < n_pairs; ++place) {
    expert_rows_.x[place] = x_rows_[expert_plan_.pair(place) / pairs_per_x];
  }
}

void CpuDevice::moe_matmul(const Weight& weight, Rows x, const Route& route, Rows out) {
  const CpuWeight& w = as_cpu(weight);
  check_rows(x);
  check_rows(out);
  RECUA_CHECK(x.n_cols == w.n_in() && out.n_cols == w.n_out());
  if (out.n_rows == 0) return;
  prepare_activations(w.activation_kind(table_), x);
  plan_experts(w, route, out.n_rows);
  place_rows(expert_plan_, out, out_rows_);
  run(out.n_rows * w.n_out() * w.row_bytes(), [&](std::size_t thread, std::size_t n_threads) {
    const sys::Partition rows = sys::partition(w.n_out(), thread, n_threads, w.row_granule());
    for (const std::uint32_t e : expert_plan_.used()) {
      multiply_expert(table_, w, e, rows, expert_plan_.places(e), expert_rows_.x, out_rows_);
    }
  });
}

void CpuDevice::combine(Rows x, const Route& route, std::size_t token, sys::Partition cols,
                        Rows out) {
  const float* weights = floats(*route.weights) + token * route.n_used;
  float* const sum = out.row(token) + cols.begin;
  std::fill_n(sum, cols.size(), 0.0F);
  for (std::size_t u = 0; u < route.n_used; ++u) {
    const float* const row = x.row(token * route.n_used + u) + cols.begin;
    table_.scale_add(weights[u], row, cols.size(), sum);
  }
}

void CpuDevice::moe_combine(Rows x, const Route& route, Rows out) {
  check_rows(x);
  check_rows(out);
  RECUA_CHECK(x.n_rows == out.n_rows * route.n_used && x.n_cols == out.n_cols);
  RECUA_CHECK(route.weights->bytes() >= x.n_rows * sizeof(float));
  for_rows(out.n_rows, route.n_used * x.n_cols * sizeof(float),
           [&](std::size_t t) { combine(x, route, t, {0, out.n_cols}, out); });
}

void CpuDevice::expert_gate_up(const ExpertFeedForward& ff, std::size_t expert,
                               sys::Partition rows) {
  const sys::Partition places = expert_plan_.places(expert);
  const auto of_places = [&](const auto& all) {
    return std::span(all).subspan(places.begin, places.size());
  };
  multiply_gated({.gate = &as_cpu(*ff.gate),
                  .up = &as_cpu(*ff.up),
                  .expert = expert,
                  .x = of_places(expert_rows_.x),
                  .gate_out = of_places(expert_rows_.gate),
                  .up_out = of_places(expert_rows_.up)},
                 rows);
}

void CpuDevice::place_down_inputs(const ExpertFeedForward& ff) {
  const CpuWeight& down = as_cpu(*ff.down);
  const kernels::ActivationKind kind = down.activation_kind(table_);
  const bool as_they_are = kind == kernels::ActivationKind::kF32;
  const std::size_t row_bytes = as_they_are ? 0 : kernels::activation_row_bytes(kind, down.n_in());
  const std::size_t n = ff.down_in.n_rows;
  const std::byte* const rounded = expert_activations_.at_least(n * row_bytes);
  expert_rows_.down_x.resize(n);
  for (std::size_t place = 0; place < n; ++place) {
    expert_rows_.down_x[place] =
        as_they_are ? reinterpret_cast<const std::byte*>(ff.down_in.row(expert_plan_.pair(place)))
                    : rounded + place * row_bytes;
  }
}

void CpuDevice::expert_round(const ExpertFeedForward& ff, sys::Partition places) {
  const CpuWeight& down = as_cpu(*ff.down);
  const kernels::ActivationKind kind = down.activation_kind(table_);
  if (kind == kernels::ActivationKind::kF32) return;
  const std::size_t row_bytes = kernels::activation_row_bytes(kind, down.n_in());
  const kernels::QuantizeFn quantize = table_.quantize(kind);
  for (std::size_t place = places.begin; place < places.end; ++place) {
    std::byte* const to = expert_activations_.data() + place * row_bytes;
    quantize(ff.down_in.row(expert_plan_.pair(place)), down.n_in(), to);
  }
}

void CpuDevice::expert_down(const ExpertFeedForward& ff, std::size_t expert, sys::Partition rows) {
  multiply_expert(table_, as_cpu(*ff.down), expert, rows, expert_plan_.places(expert),
                  expert_rows_.down_x, expert_rows_.down);
}

void CpuDevice::moe_feed_forward(const ExpertFeedForward& ff, Rows x, const Route& route,
                                 Rows out) {
  const CpuWeight& gate = as_cpu(*ff.gate);
  const CpuWeight& up = as_cpu(*ff.up);
  const CpuWeight& down = as_cpu(*ff.down);
  if (gate.activation_kind(table_) != up.activation_kind(table_)) {
    return Device::moe_feed_forward(ff, x, route, out);  // No mix has two such types.
  }
  for (const Rows& rows : {x, ff.gate_out, ff.up_out, ff.down_in, ff.down_out, out}) {
    check_rows(rows);
  }
  const std::size_t n_pairs = ff.down_out.n_rows;
  RECUA_CHECK(x.n_cols == gate.n_in() && x.n_cols == up.n_in() && gate.n_out() == up.n_out());
  RECUA_CHECK(ff.gate_out.n_rows == n_pairs && ff.gate_out.n_cols == gate.n_out());
  RECUA_CHECK(ff.up_out.n_rows == n_pairs && ff.up_out.n_cols == gate.n_out());
  RECUA_CHECK(ff.down_in.n_rows == n_pairs && ff.down_in.n_cols == down.n_in());
  RECUA_CHECK(ff.down_out.n_cols == down.n_out() && out.n_cols == down.n_out());
  RECUA_CHECK(x.n_rows == out.n_rows && n_pairs == out.n_rows * route.n_used);
  RECUA_CHECK(route.weights->bytes() >= n_pairs * sizeof(float));
  if (n_pairs == 0) return;

  prepare_activations(gate.activation_kind(table_), x);
  plan_experts(gate, route, n_pairs);
  place_rows(expert_plan_, ff.gate_out, expert_rows_.gate);
  place_rows(expert_plan_, ff.up_out, expert_rows_.up);
  place_rows(expert_plan_, ff.down_out, expert_rows_.down);
  place_down_inputs(ff);
  const std::size_t bytes_per_pair =
      2 * gate.n_out() * gate.row_bytes() + down.n_out() * down.row_bytes();
  const std::size_t bytes = n_pairs * bytes_per_pair;
  const std::size_t n_threads = pool_.n_threads();
  const double excess = expert_plan_.divide_whole(n_threads);
  const double even = static_cast<double>(expert_plan_.cost()) / static_cast<double>(n_threads);
  const auto pair_bytes = static_cast<double>(bytes_per_pair);
  const bool whole = excess <= kUnevenMax * even ||
                     excess * pair_bytes <= kHandOverBytes * ExpertPlan::row_cost(1);
  if (whole) {
    feed_forward_whole(ff, bytes);
    moe_combine(ff.down_out, route, out);
  } else {
    feed_forward_cut(ff, route, bytes, out);
  }
}

// Each expert by one thread, from end to end: nobody waits for anybody until all are done.
void CpuDevice::feed_forward_whole(const ExpertFeedForward& ff, std::size_t bytes) {
  run(bytes, [&](std::size_t thread, std::size_t n_threads) {
    for (const std::uint32_t e : expert_plan_.used()) {
      if (n_threads > 1 && expert_plan_.thread_of(e) != thread) continue;
      expert_gate_up(ff, e, {0, ff.gate->n_out()});
      expert_round(ff, expert_plan_.places(e));
      expert_down(ff, e, {0, ff.down->n_out()});
    }
  });
}

// Each expert by all threads. They divide down by columns, so that each can add up its own.
void CpuDevice::feed_forward_cut(const ExpertFeedForward& ff, const Route& route, std::size_t bytes,
                                 Rows out) {
  const std::span<const std::uint32_t> used = expert_plan_.used();
  const std::size_t n_rows = ff.gate->n_out();
  const std::size_t granule = row_granule(as_cpu(*ff.gate), as_cpu(*ff.up));
  run(bytes, [&](std::size_t thread, std::size_t n_threads) {
    const bool of_each = n_rows >= kGranulesPerThread * granule * n_threads;
    for (std::size_t i = 0; i < used.size(); ++i) {
      const sys::Partition rows = of_each
                                      ? sys::partition(n_rows, thread, n_threads, granule)
                                      : expert_plan_.rows_of(i, n_rows, granule, thread, n_threads);
      if (!rows.empty()) expert_gate_up(ff, used[i], rows);
    }
  });
  for_rows(ff.down_in.n_rows, ff.down_in.n_cols * sizeof(float),
           [&](std::size_t place) { expert_round(ff, {place, place + 1}); });
  run(bytes, [&](std::size_t thread, std::size_t n_threads) {
    const sys::Partition cols =
        sys::partition(out.n_cols, thread, n_threads, as_cpu(*ff.down).row_granule());
    if (cols.empty()) return;
    for (const std::uint32_t e : used) expert_down(ff, e, cols);
    for (std::size_t t = 0; t < out.n_rows; ++t) combine(ff.down_out, route, t, cols, out);
  });
}

}  // namespace recua::compute
