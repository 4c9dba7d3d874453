#include "model/forward.h"

#include <cmath>

#include "base/check.h"

namespace recua::model {

using compute::Rows;

void ForwardPass::run_layers(const ForwardRows& rows, Rows input, Rows output) {
  const std::size_t n = rows.positions.size();
  Rows x = input;
  if (slice_.is_first()) {
    x = a_.x.rows(n);
    device_.embed(*weights_.token_embd, rows.ids, x);
  }
  device_.rope_table(rows.positions, *weights_.inv_freq, weights_.rope_magnitude, a_.rope.rows(n));
  const std::size_t n_layers = weights_.layers.size();
  for (std::size_t i = 0; i < n_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const bool last_of_slice = i + 1 == n_layers;
    const bool select = last_of_slice && slice_.is_last() && rows.output_rows.size() < n;
    x = attention(layer, i, rows, x, select);
    if (x.n_rows == 0) break;  // Nothing is asked for; the cache has what later rows need.
    const Rows delta = feed_forward(layer, x);
    const Rows sum = last_of_slice && !slice_.is_last() ? output : x;
    device_.add(x, delta, sum);
    x = sum;
  }
  final_ = x;
}

// Returns the residual stream after attention, in our own memory (input is only read): all rows, or
// those that are asked for.
Rows ForwardPass::attention(const LayerWeights& layer, std::size_t index, const ForwardRows& rows,
                            Rows x, bool select) {
  const std::size_t n = x.n_rows;
  const Rows normed = a_.normed.rows(n);
  const Rows k = a_.k.rows(n);
  const Rows v = a_.v.rows(n);
  const Rows rope = a_.rope.rows(n);
  device_.rms_norm(x, *layer.attn_norm, hp_.rms_eps, normed);
  device_.matmul(*layer.k, normed, k);
  device_.matmul(*layer.v, normed, v);
  if (layer.k_bias) device_.add_bias(k, *layer.k_bias);
  if (layer.v_bias) device_.add_bias(v, *layer.v_bias);
  if (layer.k_norm) {
    const Rows heads = a_.k.split_rows(n, hp_.n_kv_heads);
    device_.rms_norm(heads, *layer.k_norm, hp_.rms_eps, heads);
  }
  device_.rope(k, hp_.n_kv_heads, hp_.architecture->rope, rope);
  device_.store_kv(cache_.layer(index), k, v, rows.slots);

  if (!select) {
    const Rows delta = attend(layer, index, rows, rows.attention, normed, rope);
    const Rows sum = a_.x.rows(n);
    device_.add(x, delta, sum);
    return sum;
  }
  const std::size_t n_selected = rows.output_rows.size();
  const Rows x_selected = a_.x_selected.rows(n_selected);
  if (n_selected == 0) return x_selected;
  const Rows normed_selected = a_.projected.rows(n_selected);  // Free until attend() writes it.
  const Rows rope_selected = a_.rope_selected.rows(n_selected);
  device_.gather_rows(x, rows.output_rows, x_selected);
  device_.gather_rows(normed, rows.output_rows, normed_selected);
  device_.gather_rows(rope, rows.output_rows, rope_selected);
  selected_.clear();
  for (const std::uint32_t row : rows.output_rows) selected_.push_back(rows.attention[row]);
  const Rows delta = attend(layer, index, rows, selected_, normed_selected, rope_selected);
  device_.add(x_selected, delta, x_selected);
  return x_selected;
}

// Queries, attention and its output matrix for the given rows; the result is in a_.projected.
// normed may lie there too: it has been read by then.
Rows ForwardPass::attend(const LayerWeights& layer, std::size_t index, const ForwardRows& rows,
                         std::span<const compute::AttentionRow> attention_rows, Rows normed,
                         Rows rope) {
  const std::size_t n = normed.n_rows;
  const Rows q = a_.q.rows(n);
  device_.matmul(*layer.q, normed, q);
  if (layer.q_bias) device_.add_bias(q, *layer.q_bias);
  if (layer.q_norm) {
    const Rows heads = a_.q.split_rows(n, hp_.n_heads);
    device_.rms_norm(heads, *layer.q_norm, hp_.rms_eps, heads);
  }
  device_.rope(q, hp_.n_heads, hp_.architecture->rope, rope);
  const Rows attended = a_.attended.rows(n);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(hp_.head_dim)));
  const compute::AttentionBatch batch = {.rows = attention_rows, .page_tables = rows.page_tables};
  device_.attention(cache_.layer(index), q, hp_.n_heads, batch, scale, hp_.sliding_window,
                    attended);
  const Rows projected = a_.projected.rows(n);
  device_.matmul(*layer.attn_output, attended, projected);
  return projected;
}

Rows ForwardPass::feed_forward(const LayerWeights& layer, Rows x) {
  const std::size_t n = x.n_rows;
  const Rows normed = a_.normed.rows(n);
  device_.rms_norm(x, *layer.ffn_norm, hp_.rms_eps, normed);
  if (layer.router) return experts(layer, normed);
  const Rows gate = a_.gate.rows(n);
  const Rows up = a_.up.rows(n);
  device_.matmul(*layer.gate, normed, gate);
  device_.matmul(*layer.up, normed, up);
  device_.silu_mul(gate, up, gate);
  const Rows projected = a_.projected.rows(n);
  device_.matmul(*layer.down, gate, projected);
  return projected;
}

Rows ForwardPass::experts(const LayerWeights& layer, Rows normed) {
  const std::size_t n = normed.n_rows;
  const std::size_t n_used = hp_.n_experts_used;
  const Rows router = a_.router.rows(n);
  const compute::Route route = {
      .n_used = n_used, .ids = a_.expert_ids.buffer(), .weights = a_.expert_weights.buffer()};
  device_.matmul(*layer.router, normed, router);
  // Softmax over the chosen experts (Mixtral) is softmax over all, divided by the chosen ones' sum
  // (Qwen 3).
  device_.moe_route(router, /*renormalize=*/true, route);
  const Rows gate = a_.gate.rows(n * n_used);
  const Rows up = a_.up.rows(n * n_used);
  const Rows out = a_.expert_out.rows(n * n_used);
  device_.moe_matmul(*layer.gate, normed, route, gate);
  device_.moe_matmul(*layer.up, normed, route, up);
  device_.silu_mul(gate, up, gate);
  device_.moe_matmul(*layer.down, gate, route, out);
  const Rows projected = a_.projected.rows(n);
  device_.moe_combine(out, route, projected);
  return projected;
}

Rows ForwardPass::logits(std::size_t begin, std::size_t n) {
  RECUA_CHECK(slice_.is_last() && n <= kLogitRows && begin + n <= final_.n_rows);
  const Rows normed = a_.normed.rows(n);
  device_.rms_norm(final_.slice_rows(begin, n), *weights_.output_norm, hp_.rms_eps, normed);
  const Rows out = a_.logits.rows(n);
  device_.matmul(weights_.output_matrix(), normed, out);
  return out;
}

}  // namespace recua::model
