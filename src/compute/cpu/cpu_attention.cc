// RoPE, the KV cache and attention.
//
// A row's context is cut at multiples of kSplitTokens, counted from position 0: each piece is a
// softmax of its own, and pieces are merged in ascending order (Dao et al. 2022, "FlashAttention";
// Milakov & Gimelshein 2018). The cuts depend on positions only, so a row's result does not depend
// on its batch, the pages or the threads; and scratch memory does not grow with the context.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/bytes.h"
#include "compute/cpu/cpu_device_impl.h"

namespace recua::compute {
namespace {

// K and V of 256 tokens of a head of 128 in F16 are 128 KiB: they stay in the second-level cache
// between the heads that share them.
constexpr std::size_t kSplitTokens = 256;

bool is_f16(quant::DataType type) {
  RECUA_CHECK(type == quant::DataType::kF16 || type == quant::DataType::kF32);
  return type == quant::DataType::kF16;
}

void check_layer(const KvLayer& layer) {
  RECUA_CHECK(layer.buffer != nullptr && layer.buffer->host() != nullptr);
  RECUA_CHECK(layer.page_tokens > 0 && layer.n_kv_heads > 0 && layer.head_dim > 0);
  const std::size_t page_bytes =
      layer.page_tokens * (layer.k_token_bytes() + layer.v_token_bytes());
  RECUA_CHECK(page_bytes <= layer.page_stride || layer.n_pages <= 1);
  RECUA_CHECK(layer.n_pages == 0 ||
              layer.offset + (layer.n_pages - 1) * layer.page_stride + page_bytes <=
                  layer.buffer->bytes());
}

// One KV head of a layer, and where a position of a sequence lies in it.
struct HeadCache {
  const KvLayer& layer;
  std::span<const std::uint32_t> pages;
  std::size_t kv_head = 0;

  // The run of tokens from position `begin` to the end of its page or to `end`.
  [[nodiscard]] kernels::KvRun keys(std::size_t begin, std::size_t end) const {
    return run(begin, end, 0, layer.k_token_bytes(), layer.k_type);
  }
  [[nodiscard]] kernels::KvRun values(std::size_t begin, std::size_t end) const {
    return run(begin, end, layer.page_tokens * layer.k_token_bytes(), layer.v_token_bytes(),
               layer.v_type);
  }

 private:
  [[nodiscard]] kernels::KvRun run(std::size_t begin, std::size_t end, std::size_t within_page,
                                   std::size_t token_bytes, quant::DataType type) const {
    const std::size_t in_page = begin % layer.page_tokens;
    const std::size_t page = pages[begin / layer.page_tokens];
    const bool f16 = type == quant::DataType::kF16;
    const std::size_t head_bytes = layer.head_dim * (f16 ? 2 : 4);
    return {.data = layer.buffer->host() + layer.offset + page * layer.page_stride + within_page +
                    in_page * token_bytes + kv_head * head_bytes,
            .token_stride = token_bytes,
            .n_tokens = std::min(end - begin, layer.page_tokens - in_page),
            .head_dim = layer.head_dim,
            .is_f16 = f16};
  }
};

// One thread's working memory: a piece's scores, its weighted values, and each head's softmax.
struct PieceScratch {
  float* scores = nullptr;                  // [n_heads, kSplitTokens]
  float* values = nullptr;                  // [n_heads, head_dim]
  kernels::SoftmaxPart* part = nullptr;     // [n_heads], of this piece
  kernels::SoftmaxPart* running = nullptr;  // [n_heads], of all pieces so far

  static std::size_t bytes(std::size_t n_heads, std::size_t head_dim) {
    const std::size_t size =
        n_heads * ((kSplitTokens + head_dim) * sizeof(float) + 2 * sizeof(kernels::SoftmaxPart));
    return align_up(size, std::size_t{64});
  }
  static PieceScratch at(std::byte* memory, std::size_t n_heads, std::size_t head_dim) {
    auto* scores = reinterpret_cast<float*>(memory);
    float* values = scores + n_heads * kSplitTokens;
    auto* part = reinterpret_cast<kernels::SoftmaxPart*>(values + n_heads * head_dim);
    return {scores, values, part, part + n_heads};
  }
};

// out and running become those of both: each side is scaled to the larger maximum.
void merge(const float* part_values, kernels::SoftmaxPart part, std::size_t n, float* out,
           kernels::SoftmaxPart& running) {
  const float max = std::max(running.max, part.max);
  const float old_scale = std::exp(running.max - max);
  const float new_scale = std::exp(part.max - max);
  for (std::size_t d = 0; d < n; ++d) out[d] = out[d] * old_scale + part_values[d] * new_scale;
  running = {max, running.sum * old_scale + part.sum * new_scale};
}

// The n_heads query heads that share a KV head, over the positions [first, end).
void attend(const kernels::KernelTable& table, const HeadCache& cache, const float* q,
            std::size_t n_heads, std::size_t first, std::size_t end, float scale,
            const PieceScratch& scratch, float* out) {
  const std::size_t head_dim = cache.layer.head_dim;
  for (std::size_t begin = first; begin < end;) {
    const std::size_t cut = std::min(end, (begin / kSplitTokens + 1) * kSplitTokens);
    for (std::size_t i = begin; i < cut;) {
      const kernels::KvRun keys = cache.keys(i, cut);
      table.attention_scores(q, n_heads, keys, scale, scratch.scores + (i - begin), kSplitTokens);
      i += keys.n_tokens;
    }
    const bool is_first = begin == first;
    float* const values = is_first ? out : scratch.values;
    std::memset(values, 0, n_heads * head_dim * sizeof(float));
    kernels::SoftmaxPart* const part = is_first ? scratch.running : scratch.part;
    for (std::size_t h = 0; h < n_heads; ++h) {
      part[h] = table.softmax_part(scratch.scores + h * kSplitTokens, cut - begin);
    }
    for (std::size_t i = begin; i < cut;) {
      const kernels::KvRun run = cache.values(i, cut);
      table.attention_values(scratch.scores + (i - begin), kSplitTokens, n_heads, run, values);
      i += run.n_tokens;
    }
    for (std::size_t h = 0; !is_first && h < n_heads; ++h) {
      merge(values + h * head_dim, part[h], head_dim, out + h * head_dim, scratch.running[h]);
    }
    begin = cut;
  }
  for (std::size_t h = 0; h < n_heads; ++h) {
    const float inverse = 1.0F / scratch.running[h].sum;
    for (std::size_t d = 0; d < head_dim; ++d) out[h * head_dim + d] *= inverse;
  }
}

}  // namespace

void CpuDevice::rope_table(std::span<const std::uint32_t> positions, const Buffer& inv_freq,
                           float magnitude, Rows table) {
  check_rows(table);
  RECUA_CHECK(table.n_rows == positions.size() && table.n_cols % 2 == 0);
  RECUA_CHECK(inv_freq.bytes() >= table.n_cols / 2 * sizeof(float));
  // A sine and a cosine in double take about 40 ns, as long as moving some 400 bytes.
  for_rows(positions.size(), table.n_cols * 200, [&](std::size_t r) {
    float* row = table.row(r);
    for (std::size_t j = 0; j < table.n_cols / 2; ++j) {
      const double angle =
          static_cast<double>(positions[r]) * static_cast<double>(floats(inv_freq)[j]);
      row[2 * j] = static_cast<float>(std::cos(angle) * static_cast<double>(magnitude));
      row[2 * j + 1] = static_cast<float>(std::sin(angle) * static_cast<double>(magnitude));
    }
  });
}

void CpuDevice::rope(Rows x, std::size_t n_heads, RopeKind kind, Rows table) {
  check_rows(x);
  check_rows(table);
  RECUA_CHECK(x.n_rows == table.n_rows && n_heads > 0 && x.n_cols % n_heads == 0);
  const std::size_t head_dim = x.n_cols / n_heads;
  RECUA_CHECK(table.n_cols <= head_dim && table.n_cols % 2 == 0);
  const auto rotate =
      kind == RopeKind::kInterleaved ? table_.rope_interleaved : table_.rope_split_half;
  for_rows(x.n_rows, 2 * x.n_cols * sizeof(float), [&](std::size_t r) {
    for (std::size_t h = 0; h < n_heads; ++h) {
      rotate(x.row(r) + h * head_dim, table.row(r), table.n_cols);
    }
  });
}

void CpuDevice::store_kv(const KvLayer& layer, Rows k, Rows v,
                         std::span<const std::uint64_t> slots) {
  check_layer(layer);
  check_rows(k);
  check_rows(v);
  const std::size_t n = layer.n_kv_heads * layer.head_dim;
  RECUA_CHECK(k.n_rows == slots.size() && v.n_rows == slots.size());
  RECUA_CHECK(k.n_cols == n && v.n_cols == n);
  const auto store = [&](const float* row, quant::DataType type, std::byte* to) {
    if (is_f16(type)) {
      table_.f32_to_f16(row, n, reinterpret_cast<std::uint16_t*>(to));
    } else {
      std::memcpy(to, row, n * sizeof(float));
    }
  };
  for (std::size_t r = 0; r < slots.size(); ++r) {
    const std::uint64_t page = slots[r] / layer.page_tokens;
    const std::uint64_t place = slots[r] % layer.page_tokens;
    RECUA_CHECK(page < layer.n_pages);
    std::byte* const at = layer.buffer->host() + layer.offset + page * layer.page_stride;
    store(k.row(r), layer.k_type, at + place * layer.k_token_bytes());
    store(v.row(r), layer.v_type,
          at + layer.page_tokens * layer.k_token_bytes() + place * layer.v_token_bytes());
  }
}

void CpuDevice::attention(const KvLayer& layer, Rows q, const HeadGroups& heads,
                          const AttentionBatch& batch, float scale, std::uint32_t window,
                          Rows out) {
  check_layer(layer);
  check_rows(q);
  check_rows(out);
  is_f16(layer.k_type);
  is_f16(layer.v_type);
  const std::size_t head_dim = layer.head_dim;
  RECUA_CHECK(heads.n_heads > 0 && heads.n_before < heads.n_group);
  RECUA_CHECK(heads.n_kv_heads() == layer.n_kv_heads);
  RECUA_CHECK(q.n_cols == heads.n_heads * head_dim && out.n_cols == q.n_cols);
  RECUA_CHECK(q.n_rows == batch.rows.size() && out.n_rows == q.n_rows);
  const std::size_t n_group = heads.n_group;

  std::size_t tokens_seen = 0;
  for (const AttentionRow& row : batch.rows) {
    const std::size_t n_seen = std::size_t{row.position} + 1;
    RECUA_CHECK(row.sequence < batch.page_tables.size());
    const auto pages = batch.page_tables[row.sequence];
    RECUA_CHECK(pages.size() * layer.page_tokens >= n_seen);
    const std::size_t first = window > 0 && n_seen > window ? n_seen - window : 0;
    for (std::size_t p = first / layer.page_tokens; p <= row.position / layer.page_tokens; ++p) {
      RECUA_CHECK(pages[p] < layer.n_pages);
    }
    tokens_seen += n_seen - first;
  }

  const std::size_t scratch_bytes = PieceScratch::bytes(n_group, head_dim);
  std::byte* const memory = attention_scratch_.at_least(scratch_bytes * pool_.n_threads());
  const std::size_t bytes = tokens_seen * (layer.k_token_bytes() + layer.v_token_bytes());
  run(bytes, [&](std::size_t thread, std::size_t n_threads) {
    const PieceScratch scratch =
        PieceScratch::at(memory + thread * scratch_bytes, n_group, head_dim);
    // Head by head, so that neighbouring rows find its keys in the cache; rows in turn, since later
    // ones see more.
    for (std::size_t head = 0; head < layer.n_kv_heads; ++head) {
      const std::size_t end_head = (head + 1) * n_group - heads.n_before;
      const std::size_t first_head = head == 0 ? 0 : end_head - n_group;
      const std::size_t n_heads = std::min(end_head, heads.n_heads) - first_head;
      for (std::size_t r = (thread + n_threads - head % n_threads) % n_threads;
           r < batch.rows.size(); r += n_threads) {
        const AttentionRow& row = batch.rows[r];
        const std::size_t end = std::size_t{row.position} + 1;
        const std::size_t first = window > 0 && end > window ? end - window : 0;
        const HeadCache cache{layer, batch.page_tables[row.sequence], head};
        const std::size_t column = first_head * head_dim;
        attend(table_, cache, q.row(r) + column, n_heads, first, end, scale, scratch,
               out.row(r) + column);
      }
    }
  });
}

}  // namespace recua::compute
