#include "model/forward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace recua::model {

using compute::Rows;

namespace {

std::span<float> host_floats(Rows rows) {
  // A device whose memory the host does not see needs a copy here; due with the first such device.
  RECUA_CHECK(rows.buffer->host() != nullptr);
  RECUA_CHECK(rows.stride == rows.n_cols || rows.n_rows <= 1);
  return {rows.row(0), rows.n_rows * rows.n_cols};
}

}  // namespace

ForwardPass::ForwardPass(compute::Device& device, const HyperParams& hp, const Slice& slice,
                         const SliceWeights& weights, const kv::PagedCache& cache,
                         const Activations& memory, Communicator& communicator)
    : device_(device),
      hp_(hp),
      slice_(slice),
      weights_(weights),
      cache_(cache),
      a_(memory),
      communicator_(communicator),
      share_(own_share(slice, hp)),
      gather_counts_(slice.n_ranks) {}

Result<void> ForwardPass::run_layers(const ForwardRows& rows, Rows input, Rows output) {
  const std::size_t n = rows.positions.size();
  pending_.reset();  // Of a pass that failed.
  Rows x = input;
  if (slice_.is_first()) {
    x = a_.x.rows(n);
    device_.embed(*weights_.token_embd, static_cast<TokenId>(share_.vocab.begin), rows.ids, x);
    RECUA_RETURN_IF_ERROR(sum_over_ranks(x));
  }
  device_.rope_table(rows.positions, *weights_.inv_freq, weights_.rope_magnitude, a_.rope.rows(n));
  const std::size_t n_layers = weights_.layers.size();
  for (std::size_t i = 0; i < n_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const bool last_of_slice = i + 1 == n_layers;
    if (last_of_slice && slice_.is_last() && rows.output_rows.size() < n) {
      RECUA_ASSIGN_OR_RETURN(x, attention_of_outputs(layer, i, rows, x));
      if (x.n_rows == 0) break;  // Nothing is asked for; the cache has what later rows need.
    } else {
      for (const RowRange& part : parts_of(n)) {
        RECUA_RETURN_IF_ERROR(attention(layer, i, rows, part, x.slice_rows(part.begin, part.size)));
      }
      x = a_.x.rows(n);
    }
    const Rows sum = last_of_slice && !slice_.is_last() ? output : x;
    for (const RowRange& part : parts_of(x.n_rows)) {
      RECUA_RETURN_IF_ERROR(feed_forward(layer, part, x.slice_rows(part.begin, part.size),
                                         sum.slice_rows(part.begin, part.size)));
    }
    x = sum;
  }
  RECUA_RETURN_IF_ERROR(settle());
  final_ = x;
  return ok();
}

// All rows, or two halves that are computed in turns: the sums of one travel meanwhile.
std::span<const ForwardPass::RowRange> ForwardPass::parts_of(std::size_t n) {
  const bool halves = slice_.n_ranks > 1 && communicator_.overlaps() && n >= 2 * kHalfRowsMin;
  const std::size_t first = halves ? (n + 1) / 2 : n;
  parts_ = {{{.begin = 0, .size = first}, {.begin = first, .size = n - first}}};
  return std::span(parts_).first(halves ? 2 : 1);
}

Rows ForwardPass::rows_of(const RowBuffer& buffer, const RowRange& part) {
  return buffer.rows(part.begin + part.size).slice_rows(part.begin, part.size);
}

// What a part needs of the one before it: everything if they are the same.
Result<void> ForwardPass::begin_part(const RowRange& part) {
  if (pending_ && pending_->part.begin != part.begin) return ok();
  return settle();
}

// sum = x + the sum over ranks of delta: when settle() has been called, which the next such sum
// does first.
Result<void> ForwardPass::add_over_ranks(const RowRange& part, Rows x, Rows delta, Rows sum) {
  if (slice_.n_ranks == 1) {
    device_.add(x, delta, sum);
    return ok();
  }
  RECUA_RETURN_IF_ERROR(settle());
  device_.sync();
  RECUA_RETURN_IF_ERROR(communicator_.begin_all_reduce(host_floats(delta)));
  pending_ = {.part = part, .x = x, .delta = delta, .sum = sum};
  return ok();
}

Result<void> ForwardPass::settle() {
  if (!pending_) return ok();
  const Pending sum = *std::exchange(pending_, std::nullopt);
  RECUA_RETURN_IF_ERROR(communicator_.finish_all_reduce());
  device_.add(sum.x, sum.delta, sum.sum);
  return ok();
}

// Between operators, as some of what travels may need it.
Result<void> ForwardPass::help_sums() { return pending_ ? communicator_.help_all_reduce() : ok(); }

// Keys, values and, unless only the outputs' are wanted, queries of rows of the residual stream.
Result<void> ForwardPass::project_rows(const LayerWeights& layer, std::size_t index,
                                       const ForwardRows& rows, const RowRange& part, Rows x,
                                       bool with_queries) {
  const std::size_t n = part.size;
  const Rows normed = rows_of(a_.normed, part);
  const Rows k = a_.k.rows(n);
  const Rows v = a_.v.rows(n);
  device_.rms_norm(x, *layer.attn_norm, hp_.rms_eps, normed);
  const std::array<compute::Product, 3> products = {
      {{layer.k.get(), k}, {layer.v.get(), v}, {layer.q.get(), a_.q.rows(n)}}};
  device_.matmul_each(std::span(products).first(with_queries ? 3 : 2), normed);
  adapt(layer.k_lora, normed, k);
  adapt(layer.v_lora, normed, v);
  if (layer.k_bias) device_.add_bias(k, *layer.k_bias);
  if (layer.v_bias) device_.add_bias(v, *layer.v_bias);
  if (layer.k_norm) {
    const Rows heads = a_.k.split_rows(n, share_.kv_heads.size());
    device_.rms_norm(heads, *layer.k_norm, hp_.rms_eps, heads);
  }
  device_.rope(k, share_.kv_heads.size(), hp_.architecture->rope, rows_of(a_.rope, part));
  device_.store_kv(cache_.layer(index), k, v, rows.slots.subspan(part.begin, n));
  return help_sums();
}

// x + attention of a part of the rows, in our own memory (x, which may be the input, is only read).
Result<void> ForwardPass::attention(const LayerWeights& layer, std::size_t index,
                                    const ForwardRows& rows, const RowRange& part, Rows x) {
  const std::size_t n = part.size;
  RECUA_RETURN_IF_ERROR(begin_part(part));
  RECUA_RETURN_IF_ERROR(project_rows(layer, index, rows, part, x, /*with_queries=*/true));
  const Rows delta = rows_of(a_.projected, part);
  RECUA_RETURN_IF_ERROR(attend(layer, index, rows, rows.attention.subspan(part.begin, n),
                               rows_of(a_.normed, part), rows_of(a_.rope, part), delta));
  return add_over_ranks(part, x, delta, rows_of(a_.x, part));
}

// The same of those rows only that are asked for, which it returns; all rows' keys and values are
// stored.
Result<Rows> ForwardPass::attention_of_outputs(const LayerWeights& layer, std::size_t index,
                                               const ForwardRows& rows, Rows x) {
  const RowRange all = {.begin = 0, .size = x.n_rows};
  RECUA_RETURN_IF_ERROR(settle());
  RECUA_RETURN_IF_ERROR(project_rows(layer, index, rows, all, x, /*with_queries=*/false));
  const std::size_t n = rows.output_rows.size();
  const Rows x_selected = a_.x_selected.rows(n);
  if (n == 0) return x_selected;
  const Rows delta = a_.projected.rows(n);
  const Rows normed = a_.x.rows(n);  // Free once the rows that are asked for were taken from it.
  const Rows rope = a_.rope_selected.rows(n);
  device_.gather_rows(x, rows.output_rows, x_selected);
  device_.gather_rows(a_.normed.rows(x.n_rows), rows.output_rows, normed);
  device_.gather_rows(a_.rope.rows(x.n_rows), rows.output_rows, rope);
  device_.matmul(*layer.q, normed, a_.q.rows(n));
  selected_.clear();
  for (const std::uint32_t row : rows.output_rows) selected_.push_back(rows.attention[row]);
  RECUA_RETURN_IF_ERROR(attend(layer, index, rows, selected_, normed, rope, delta));
  RECUA_RETURN_IF_ERROR(add_over_ranks({.begin = 0, .size = n}, x_selected, delta, x_selected));
  return x_selected;
}

// Attention and its output matrix for the given rows, whose products with q's matrix are in a_.q.
// normed may lie where the result goes: it has been read by then.
Result<void> ForwardPass::attend(const LayerWeights& layer, std::size_t index,
                                 const ForwardRows& rows,
                                 std::span<const compute::AttentionRow> attention_rows, Rows normed,
                                 Rows rope, Rows out) {
  const std::size_t n = normed.n_rows;
  const Rows q = a_.q.rows(n);
  adapt(layer.q_lora, normed, q);
  if (layer.q_bias) device_.add_bias(q, *layer.q_bias);
  if (layer.q_norm) {
    const Rows heads = a_.q.split_rows(n, share_.heads.size());
    device_.rms_norm(heads, *layer.q_norm, hp_.rms_eps, heads);
  }
  device_.rope(q, share_.heads.size(), hp_.architecture->rope, rope);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hp_.head_dim)));
  const std::size_t n_group = hp_.n_heads / hp_.n_kv_heads;
  const compute::HeadGroups heads = {
      .n_heads = share_.heads.size(), .n_group = n_group, .n_before = share_.heads.begin % n_group};
  // Over long contexts this takes longest, and peers must not wait for help forever.
  const Rows attended = a_.attended_cols.own_cols(a_.attended, n);
  const std::size_t n_at_once = pending_ ? kHalfRowsMin : n;
  for (std::size_t begin = 0; begin < n; begin += n_at_once) {
    const std::size_t n_piece = std::min(n_at_once, n - begin);
    device_.attention(
        cache_.layer(index), q.slice_rows(begin, n_piece), heads,
        {.rows = attention_rows.subspan(begin, n_piece), .page_tables = rows.page_tables}, scale,
        hp_.sliding_window, attended.slice_rows(begin, n_piece));
    RECUA_RETURN_IF_ERROR(help_sums());
  }
  matmul_of_share(*layer.attn_output, layer.attn_output_lora, a_.attended, a_.attended_cols, out);
  return ok();
}

// sum = x + the feed-forward of a part of the rows.
Result<void> ForwardPass::feed_forward(const LayerWeights& layer, const RowRange& part, Rows x,
                                       Rows sum) {
  const std::size_t n = part.size;
  RECUA_RETURN_IF_ERROR(begin_part(part));
  const Rows normed = rows_of(a_.normed, part);
  const Rows delta = rows_of(a_.projected, part);
  device_.rms_norm(x, *layer.ffn_norm, hp_.rms_eps, normed);
  if (layer.router) {
    experts(layer, normed, delta);
    return add_over_ranks(part, x, delta, sum);
  }
  for (std::size_t begin = 0; begin < n; begin += a_.feed_forward_rows) {
    const std::size_t n_piece = std::min(a_.feed_forward_rows, n - begin);
    const Rows in = normed.slice_rows(begin, n_piece);
    const Rows gate = a_.gate_cols.own_cols(a_.gate, n_piece);
    const Rows up = a_.up.rows(n_piece);
    if (layer.gate_lora.a == nullptr && layer.up_lora.a == nullptr) {
      device_.matmul_gated({layer.gate.get(), gate}, {layer.up.get(), up}, in);
    } else {
      const std::array<compute::Product, 2> products = {
          {{layer.gate.get(), gate}, {layer.up.get(), up}}};
      device_.matmul_each(products, in);
      adapt(layer.gate_lora, in, gate);
      adapt(layer.up_lora, in, up);
      device_.silu_mul(gate, up, gate);
    }
    RECUA_RETURN_IF_ERROR(help_sums());
    matmul_of_share(*layer.down, layer.down_lora, a_.gate, a_.gate_cols,
                    delta.slice_rows(begin, n_piece));
    RECUA_RETURN_IF_ERROR(help_sums());
  }
  return add_over_ranks(part, x, delta, sum);
}

void ForwardPass::experts(const LayerWeights& layer, Rows normed, Rows out) {
  const std::size_t n = normed.n_rows;
  const std::size_t n_used = hp_.n_experts_used;
  const Rows router = a_.router.rows(n);
  const compute::Route route = {
      .n_used = n_used, .ids = a_.expert_ids.buffer(), .weights = a_.expert_weights.buffer()};
  device_.matmul(*layer.router, normed, router);
  // Softmax over the chosen experts (Mixtral) is softmax over all, divided by the chosen ones' sum
  // (Qwen 3).
  device_.moe_route(router, /*renormalize=*/true, route);
  const std::size_t n_pairs = n * n_used;
  device_.moe_feed_forward(
      {.gate = layer.gate.get(),
       .up = layer.up.get(),
       .down = layer.down.get(),
       .gate_out = a_.gate_cols.own_cols(a_.gate, n_pairs),
       .up_out = a_.up.rows(n_pairs),
       .down_in = a_.gate_cols.whole_blocks(a_.gate, n_pairs, layer.down->type()),
       .down_out = a_.expert_out.rows(n_pairs)},
      normed, route, out);
}

Result<void> ForwardPass::sum_over_ranks(Rows rows) {
  if (slice_.n_ranks == 1) return ok();
  device_.sync();
  return communicator_.all_reduce(host_floats(rows));
}

// out += B (A x). A rank that has some of the inputs has those columns of A, one that has some of
// the outputs those rows of B; so the sum over ranks, or what they have together, is the whole.
void ForwardPass::adapt(const Lora& lora, Rows x, Rows out) {
  if (lora.a == nullptr) return;
  const Rows low = compute::dense_rows(*a_.lora_low.buffer(), x.n_rows, lora.a->n_out());
  const Rows added = compute::dense_rows(*a_.lora_added.buffer(), x.n_rows, out.n_cols);
  device_.matmul(*lora.a, x, low);
  device_.matmul(*lora.b, low, added);
  device_.add(out, added, out);
}

// out = this rank's summand of w x, where x is a buffer's columns of which this rank has some: w
// has that part of the inputs.
void ForwardPass::matmul_of_share(const compute::Weight& w, const Lora& lora, const RowBuffer& x,
                                  const SplitInput& cols, Rows out) {
  device_.matmul(w, cols.whole_blocks(x, out.n_rows, w.type()), out);
  adapt(lora, cols.own_cols(x, out.n_rows), out);  // An adapter's matrices are not in blocks.
}

Rows ForwardPass::own_logits(std::size_t begin, std::size_t n) {
  RECUA_CHECK(slice_.is_last() && n <= kLogitRows && begin + n <= final_.n_rows);
  const Rows normed = a_.normed.rows(n);
  device_.rms_norm(final_.slice_rows(begin, n), *weights_.output_norm, hp_.rms_eps, normed);
  const Rows out = slice_.n_ranks > 1 ? a_.own_logits.rows(n) : a_.logits.rows(n);
  device_.matmul(weights_.output_matrix(), normed, out);
  return out;
}

// What is gathered is rank after rank; a row's logits must be one after another.
Result<Rows> ForwardPass::gather_logits(std::size_t n) {
  if (slice_.n_ranks == 1) return a_.logits.rows(n);
  const Rows out = a_.logits.rows(n);
  const Rows gathered = n == 1 ? out : a_.gathered_logits.rows(n);
  for (std::size_t r = 0; r < slice_.shares.size(); ++r) {
    gather_counts_[r] = n * slice_.shares[r].vocab.size();
  }
  RECUA_RETURN_IF_ERROR(communicator_.all_gather(host_floats(a_.own_logits.rows(n)), gather_counts_,
                                                 host_floats(gathered)));
  if (n == 1) return out;
  const float* from = gathered.row(0);
  for (const Share& share : slice_.shares) {
    for (std::size_t row = 0; row < n; ++row, from += share.vocab.size()) {
      std::copy_n(from, share.vocab.size(), out.row(row) + share.vocab.begin);
    }
  }
  return out;
}

}  // namespace recua::model
