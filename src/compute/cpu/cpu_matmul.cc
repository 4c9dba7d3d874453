// Products with stored weights. The team divides the weight rows, so that each weight is read once
// and each output written by one thread; who is done first takes rows that others have left.
#include <algorithm>
#include <array>

#include "compute/cpu/cpu_device_impl.h"

namespace recua::compute {
namespace {

// Weight rows of one kernel call for many tokens: they stay in the second-level cache while the
// tokens pass (256 KiB is the smallest such cache in use).
constexpr std::size_t kWeightChunkBytes = std::size_t{64} << 10U;

// Of gate's and up's results together that wait in the cache for their product: half of the
// smallest second-level cache in use.
constexpr std::size_t kActivatedBytes = std::size_t{128} << 10U;

// Pieces of a product that a thread may take from another's share. Of one token: what a thread
// reads in 1 to 3 us, several times what it costs to take them. Of more: 64 rows, a multiple of
// what any tile has. Tokens beyond kManyTokens meet a piece in blocks, each of which comes
// from the cache anew, so no share gets many more pieces than kPiecesOfMany (with shares of 288 to
// 768 rows that was as fast as whole shares).
constexpr std::size_t kPieceBytes = std::size_t{64} << 10U;
constexpr std::size_t kPieceRows = 64;
static_assert(kPieceRows % kRowGranule == 0 && kPieceRows % kernels::kPackedFloatRows == 0);
constexpr std::size_t kManyTokens = 24;
constexpr std::size_t kPiecesOfMany = 8;

RowPieces row_pieces(std::size_t n_rows, std::size_t granule, std::size_t row_bytes,
                     std::size_t n_tokens, std::size_t n_threads) {
  std::size_t rows = kPieceRows;
  if (n_tokens == 1) {
    rows = std::max<std::size_t>(1, kPieceBytes / row_bytes / granule) * granule;
  } else if (n_tokens > kManyTokens) {
    rows *= std::max<std::size_t>(1, n_rows / n_threads / kPiecesOfMany / kPieceRows);
  }
  RECUA_DCHECK(rows % granule == 0);
  return {.n_rows = n_rows, .granule = granule, .piece_rows = rows, .n_threads = n_threads};
}

}  // namespace

void multiply_rows(const kernels::KernelTable& table, const CpuWeight& w, std::size_t expert,
                   sys::Partition rows, std::span<const std::byte* const> x,
                   std::span<float* const> out) {
  const kernels::MatmulFn kernel = w.kernel(table);
  kernels::MatmulArgs args{.w = nullptr,
                           .w_stride = w.stride(),
                           .n_rows = 0,
                           .n_in = w.n_in(),
                           .x = x.data(),
                           .out = out.data(),
                           .out_offset = 0,
                           .n_tokens = x.size()};
  std::size_t chunk = rows.size();
  if (args.n_tokens > 1 && !w.is_packed()) {  // Packed kernels do it themselves.
    chunk = std::max(kRowGranule, kWeightChunkBytes / w.row_bytes() / kRowGranule * kRowGranule);
  }
  RECUA_CHECK(rows.empty() || rows.begin % w.group_rows() == 0);
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

void CpuDevice::matmul(const Weight& w, Rows x, Rows out) {
  const Product product = {.w = &w, .out = out};
  multiply_alike({&product, 1}, x);
}

void CpuDevice::matmul_each(std::span<const Product> products, Rows x) {
  const auto kind = [&](std::size_t i) { return as_cpu(*products[i].w).activation_kind(table_); };
  for (std::size_t begin = 0; begin < products.size();) {
    std::size_t end = begin + 1;
    while (end < products.size() && kind(end) == kind(begin)) ++end;
    multiply_alike(products.subspan(begin, end - begin), x);
    begin = end;
  }
}

void CpuDevice::place_outputs(std::span<const Product> products, Rows x) {
  check_rows(x);
  out_rows_.clear();
  for (const Product& product : products) {
    check_rows(product.out);
    RECUA_CHECK(x.n_rows == product.out.n_rows && x.n_cols == product.w->n_in() &&
                product.out.n_cols == product.w->n_out());
    for (std::size_t r = 0; r < x.n_rows; ++r) out_rows_.push_back(product.out.row(r));
  }
}

void CpuDevice::multiply_alike(std::span<const Product> products, Rows x) {
  place_outputs(products, x);
  if (x.n_rows == 0 || products.empty()) return;
  prepare_activations(as_cpu(*products[0].w).activation_kind(table_), x);
  std::size_t bytes = 0;
  for (const Product& product : products) {
    bytes += product.w->n_out() * as_cpu(*product.w).row_bytes() * x.n_rows;
  }
  const std::size_t n_threads = team_size(bytes);
  pieces_.clear();
  for (const Product& product : products) {
    const CpuWeight& w = as_cpu(*product.w);
    pieces_.push_back(row_pieces(w.n_out(), w.row_granule(), w.row_bytes(), x.n_rows, n_threads));
  }
  // A share has its pieces of all products, one product's after the other's.
  const auto n_pieces = [&](std::size_t owner) {
    std::size_t n = 0;
    for (const RowPieces& pieces : pieces_) n += pieces.of_share(owner);
    return n;
  };
  run_shares(bytes, n_pieces, [&](std::size_t owner, sys::Partition taken) {
    std::size_t first = 0;
    for (std::size_t i = 0; i < products.size(); ++i) {
      const sys::Partition some = {std::max(first, taken.begin) - first,
                                   std::max(first, taken.end) - first};
      multiply_rows(table_, as_cpu(*products[i].w), 0, pieces_[i].rows(owner, some), x_rows_,
                    std::span(out_rows_).subspan(i * x.n_rows, x.n_rows));
      first += pieces_[i].of_share(owner);
    }
  });
}

// The product follows while what it takes is in the cache.
void CpuDevice::multiply_gated(const GatedRows& all, sys::Partition rows) {
  const std::size_t n_tokens = all.x.size();
  const std::size_t fit = kActivatedBytes / (2 * sizeof(float) * n_tokens);
  const std::size_t granule = row_granule(*all.gate, *all.up);
  const std::size_t chunk = std::max(2 * granule, fit / granule * granule);
  for (std::size_t begin = rows.begin; begin < rows.end; begin += chunk) {
    const sys::Partition some = {begin, std::min(rows.end, begin + chunk)};
    multiply_rows(table_, *all.gate, all.expert, some, all.x, all.gate_out);
    multiply_rows(table_, *all.up, all.expert, some, all.x, all.up_out);
    for (std::size_t t = 0; t < n_tokens; ++t) {
      float* const gate = all.gate_out[t] + begin;
      table_.silu_mul(gate, all.up_out[t] + begin, some.size(), gate);
    }
  }
}

void CpuDevice::matmul_gated(const Product& gate, const Product& up, Rows x) {
  const CpuWeight& w = as_cpu(*gate.w);
  if (w.activation_kind(table_) != as_cpu(*up.w).activation_kind(table_)) {
    return Device::matmul_gated(gate, up, x);  // No mix has two such types.
  }
  RECUA_CHECK(w.n_out() == up.w->n_out());
  const std::array<Product, 2> both = {gate, up};
  place_outputs(both, x);
  if (x.n_rows == 0) return;
  prepare_activations(w.activation_kind(table_), x);
  const std::span<float* const> outputs(out_rows_);
  const GatedRows all = {.gate = &w,
                         .up = &as_cpu(*up.w),
                         .x = x_rows_,
                         .gate_out = outputs.first(x.n_rows),
                         .up_out = outputs.last(x.n_rows)};
  const std::size_t bytes = 2 * w.n_out() * w.row_bytes() * x.n_rows;
  const RowPieces pieces = row_pieces(w.n_out(), row_granule(*all.gate, *all.up), 2 * w.row_bytes(),
                                      x.n_rows, team_size(bytes));
  run_shares(
      bytes, [&](std::size_t owner) { return pieces.of_share(owner); },
      [&](std::size_t owner, sys::Partition taken) {
        multiply_gated(all, pieces.rows(owner, taken));
      });
}

}  // namespace recua::compute
