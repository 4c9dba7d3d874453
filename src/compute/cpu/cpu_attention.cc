// Attention over pages. attention_units.h says how the work is cut.
//
// A unit with few rows reads the cache as it is stored. One with many rows (prefill) widens the
// cache to f32 first, kWideTokens at a time, which stay in the first-level cache while tiles of
// rows are multiplied with them: both ways take the same operations in the same order.
#include <algorithm>
#include <cstring>
#include <span>

#include "base/bytes.h"
#include "compute/cpu/attention_units.h"
#include "compute/cpu/cpu_device_impl.h"
#include "compute/cpu/cpu_kv.h"

namespace recua::compute {
namespace {

using kernels::KernelTable;
using kernels::SoftmaxPart;

// Query rows of a unit, a row being one token's query of one head. Widening takes as long as 3 of
// them.
constexpr std::size_t kUnitRows = 96;
// From so many rows on the cache is widened: two tiles of the kernels would widen it twice.
constexpr std::size_t kWideRows = 12;
constexpr std::size_t kWideTokens = 64;  // K or V of a head of 64: 16 KiB.
// Rows that the kernels take at once. A tile of rows does not look at tokens that none of it sees.
constexpr std::size_t kTileRows = 6;
// Results of units in one wave, per thread. More than some tens of units, so that the end of a wave
// does not cost much; and half of a second-level cache.
constexpr std::size_t kWaveBytes = std::size_t{1} << 19;

struct Shape {
  std::size_t n_rows = 0;  // Of a unit, at most.
  std::size_t head_dim = 0;

  // One unit's result: values [n_rows, head_dim] and parts [n_rows].
  [[nodiscard]] std::size_t result_bytes() const {
    return align_up(n_rows * (head_dim * sizeof(float) + sizeof(SoftmaxPart)), std::size_t{64});
  }
  // A thread's working memory: queries, scores, widened tokens.
  [[nodiscard]] std::size_t work_bytes() const {
    return (n_rows * (head_dim + kBlockTokens) + (kWideTokens + kKeyGroup) * head_dim) *
           sizeof(float);
  }
};

struct Result {
  float* values = nullptr;
  SoftmaxPart* parts = nullptr;

  static Result at(std::byte* memory, const Shape& shape) {
    auto* values = reinterpret_cast<float*>(memory);
    return {values, reinterpret_cast<SoftmaxPart*>(values + shape.n_rows * shape.head_dim)};
  }
};

struct Work {
  float* q = nullptr;       // [n_rows, head_dim], times the scale
  float* scores = nullptr;  // [n_rows, kBlockTokens]
  float* wide = nullptr;    // [kWideTokens + kKeyGroup, head_dim]

  static Work at(std::byte* memory, const Shape& shape) {
    auto* q = reinterpret_cast<float*>(memory);
    float* const scores = q + shape.n_rows * shape.head_dim;
    return {q, scores, scores + shape.n_rows * kBlockTokens};
  }
};

// The rows of a unit that use one KV head, which lie in its working memory from row `base` on: row
// i is head i % n_heads of token i / n_heads.
class HeadRows {
 public:
  HeadRows(const AttentionUnits& units, const AttentionUnit& unit, std::size_t n_heads,
           std::size_t base)
      : units_(units),
        group_(*unit.group),
        n_heads_(n_heads),
        base_(base),
        begin_(unit.block * kBlockTokens),
        end_(begin_ + kBlockTokens) {}

  [[nodiscard]] std::size_t size() const { return group_.n_rows * n_heads_; }
  [[nodiscard]] std::size_t base() const { return base_; }
  /// What row i sees of the block; empty if first >= end.
  [[nodiscard]] Seen operator[](std::size_t i) const {
    const Seen& seen = units_.seen(group_.row + i / n_heads_);
    return {std::max(seen.first, begin_), std::min(seen.end, end_)};
  }
  /// What any of the rows [i, i + n) sees of it.
  [[nodiscard]] Seen of(std::size_t i, std::size_t n) const {
    return {(*this)[i].first, (*this)[i + n - 1].end};
  }

 private:
  const AttentionUnits& units_;
  const RowGroup& group_;
  std::size_t n_heads_;
  std::size_t base_;
  std::size_t begin_, end_;
};

// The runs of a head's cache in ascending order, from the pages or widened.
class Runs {
 public:
  Runs(const KernelTable& table, const HeadCache& cache, bool widen, float* wide)
      : table_(table),
        cache_(cache),
        // Groups that do not begin at a multiple of kKeyGroup tokens are taken from the pages.
        widen_(widen && cache.layer.page_tokens % kKeyGroup == 0),
        wide_(wide) {}

  // The run that begins with position `begin` and ends at `end` or before.
  [[nodiscard]] kernels::KeyRun keys(std::size_t begin, std::size_t end) const {
    const KvLayer& layer = cache_.layer;
    if (!widen_) return cache_.keys(begin, end);
    end = std::min(end, (begin / kWideTokens + 1) * kWideTokens);
    float* to = wide_;
    for (std::size_t i = begin / kKeyGroup * kKeyGroup; i < end;) {
      const std::size_t n = cache_.keys(i, end).n_tokens;
      const std::size_t n_groups = (n + kKeyGroup - 1) / kKeyGroup;
      table_.widen_keys(layer.k_type, cache_.key_group(i), n_groups, layer.head_dim, to);
      to += n_groups * kKeyGroup * layer.head_dim;
      i += n;
    }
    return {.data = reinterpret_cast<const std::byte*>(wide_),
            .skip = begin % kKeyGroup,
            .n_tokens = end - begin,
            .head_dim = layer.head_dim,
            .type = quant::DataType::kF32};
  }
  [[nodiscard]] kernels::ValueRun values(std::size_t begin, std::size_t end) const {
    const KvLayer& layer = cache_.layer;
    if (!widen_) return cache_.values(begin, end);
    end = std::min(end, (begin / kWideTokens + 1) * kWideTokens);
    float* to = wide_;
    for (std::size_t i = begin; i < end;) {
      const kernels::ValueRun run = cache_.values(i, end);
      table_.widen_values(layer.v_type, run.data, run.n_tokens * layer.head_dim, to);
      to += run.n_tokens * layer.head_dim;
      i += run.n_tokens;
    }
    return {.data = reinterpret_cast<const std::byte*>(wide_),
            .n_tokens = end - begin,
            .head_dim = layer.head_dim,
            .type = quant::DataType::kF32};
  }

 private:
  const KernelTable& table_;
  const HeadCache& cache_;
  bool widen_;
  float* wide_;
};

// Scores of all rows with the run's tokens, which begin at position `at` of the block from `block`.
void score_run(const KernelTable& table, const HeadRows& rows, const kernels::KeyRun& run,
               std::size_t at, std::size_t block, const Work& work) {
  for (std::size_t i = 0; i < rows.size(); i += kTileRows) {
    const std::size_t n = std::min(kTileRows, rows.size() - i);
    const Seen seen = rows.of(i, n);
    const std::size_t begin = std::max(seen.first, at);
    const std::size_t end = std::min(seen.end, at + run.n_tokens);
    if (begin >= end) continue;
    kernels::KeyRun part = run;
    const std::size_t place = run.skip + (begin - at);
    part.skip = place % kKeyGroup;
    part.data += place / kKeyGroup * kKeyGroup * quant::row_bytes(run.type, run.head_dim);
    if (run.next != nullptr) part.next = run.next + (part.data - run.data);
    part.n_tokens = end - begin;
    const std::size_t row = rows.base() + i;
    table.attention_scores(work.q + row * run.head_dim, n, part,
                           work.scores + row * kBlockTokens + (begin - block), kBlockTokens);
  }
}

// Adds the run's tokens to the values of all rows. Of a tile's rows a token is seen by neighbouring
// ones: what the first and the last rows see begins and ends first.
void add_run(const KernelTable& table, const HeadRows& rows, const kernels::ValueRun& run,
             std::size_t at, std::size_t block, const Work& work, float* values) {
  const std::size_t row_bytes = quant::row_bytes(run.type, run.head_dim);
  for (std::size_t i = 0; i < rows.size(); i += kTileRows) {
    const std::size_t n = std::min(kTileRows, rows.size() - i);
    const Seen seen = rows.of(i, n);
    const std::size_t tile_end = std::min(seen.end, at + run.n_tokens);
    std::size_t low = i;
    std::size_t high = i;
    for (std::size_t begin = std::max(seen.first, at); begin < tile_end;) {
      while (low < i + n && rows[low].end <= begin) ++low;
      while (high < i + n && rows[high].first <= begin) ++high;
      std::size_t end = std::min(tile_end, rows[low].end);
      if (high < i + n) end = std::min(end, rows[high].first);
      if (low < high) {
        kernels::ValueRun part = run;
        part.data += (begin - at) * row_bytes;
        if (run.next != nullptr) part.next = run.next + (part.data - run.data);
        part.n_tokens = end - begin;
        const std::size_t row = rows.base() + low;
        table.attention_values(work.scores + row * kBlockTokens + (begin - block), kBlockTokens,
                               high - low, part, values + row * run.head_dim);
      }
      begin = end;
    }
  }
}

// One unit: `result` becomes the softmax and the weighted values of each row over the block.
// rows_of(head): its rows. What a page has of the heads is read from end to end.
template <class RowsOf>
void attend(const KernelTable& table, const KvLayer& layer, std::span<const std::uint32_t> pages,
            const AttentionUnit& unit, RowsOf&& rows_of, const Work& work, const Result& result) {
  const std::size_t block = unit.block * kBlockTokens;
  const HeadRows first_rows = rows_of(unit.head_begin);
  const Seen seen = first_rows.of(0, first_rows.size());  // The same for all heads.
  const bool widen = unit.group->n_heads == 1 && first_rows.size() >= kWideRows;
  const auto cache_of = [&](std::size_t head) { return HeadCache{layer, pages, head}; };
  const auto next_of = [&](std::size_t head, std::size_t at, std::size_t n_tokens) {
    // The next head's part of the same page, or the first head's of the next.
    const bool last = head + 1 == unit.head_end;
    return sys::Partition{last ? unit.head_begin : head + 1, last ? at + n_tokens : at};
  };
  for (std::size_t at = seen.first; at < seen.end;) {
    std::size_t n_tokens = 0;
    for (std::size_t head = unit.head_begin; head < unit.head_end; ++head) {
      const HeadCache cache = cache_of(head);
      kernels::KeyRun run = Runs(table, cache, widen, work.wide).keys(at, seen.end);
      n_tokens = run.n_tokens;
      const auto [next_head, next_at] = next_of(head, at, n_tokens);
      if (!widen) {
        run.next = next_at < seen.end ? cache_of(next_head).key_group(next_at)
                                      : cache_of(next_head).value_row(seen.first);
      }
      score_run(table, rows_of(head), run, at, block, work);
    }
    at += n_tokens;
  }
  std::size_t n_rows = 0;
  for (std::size_t head = unit.head_begin; head < unit.head_end; ++head) {
    const HeadRows rows = rows_of(head);
    for (std::size_t i = 0; i < rows.size(); ++i, ++n_rows) {
      const Seen own = rows[i];
      if (own.first >= own.end) continue;
      float* const scores = work.scores + n_rows * kBlockTokens + (own.first - block);
      result.parts[n_rows] = table.softmax_part(scores, own.end - own.first);
    }
  }
  std::memset(result.values, 0, n_rows * layer.head_dim * sizeof(float));
  for (std::size_t at = seen.first; at < seen.end;) {
    std::size_t n_tokens = 0;
    for (std::size_t head = unit.head_begin; head < unit.head_end; ++head) {
      const HeadCache cache = cache_of(head);
      kernels::ValueRun run = Runs(table, cache, widen, work.wide).values(at, seen.end);
      n_tokens = run.n_tokens;
      const auto [next_head, next_at] = next_of(head, at, n_tokens);
      if (!widen && next_at < seen.end) run.next = cache_of(next_head).value_row(next_at);
      add_run(table, rows_of(head), run, at, block, work, result.values);
    }
    at += n_tokens;
  }
}

}  // namespace

void CpuDevice::attention(const KvLayer& layer, Rows q, const HeadGroups& heads,
                          const AttentionBatch& batch, float scale, std::uint32_t window,
                          Rows out) {
  check_layer(layer);
  check_rows(q);
  check_rows(out);
  const std::size_t head_dim = layer.head_dim;
  RECUA_CHECK(heads.n_heads > 0 && heads.n_before < heads.n_group);
  RECUA_CHECK(heads.n_kv_heads() == layer.n_kv_heads);
  RECUA_CHECK(q.n_cols == heads.n_heads * head_dim && out.n_cols == q.n_cols);
  RECUA_CHECK(q.n_rows == batch.rows.size() && out.n_rows == q.n_rows);
  if (batch.rows.empty()) return;

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

  const std::size_t n_group = heads.n_group;
  const std::size_t n_threads = pool_.n_threads();
  AttentionUnits& units = attention_units_;
  units.begin(batch, window,
              {.n_kv_heads = layer.n_kv_heads,
               .n_group = n_group,
               .n_rows_max = kUnitRows,
               .n_wide_rows = kWideRows,
               .n_units_min = n_threads == 1 ? 1 : 4 * n_threads});
  const Shape shape = {.n_rows = units.n_rows_max(), .head_dim = head_dim};
  const std::size_t result_bytes = shape.result_bytes();
  const std::size_t work_bytes = align_up(shape.work_bytes(), std::size_t{64});
  const std::size_t n_units_max = std::max(n_threads, n_threads * kWaveBytes / result_bytes);
  const std::size_t parts_bytes =
      align_up(batch.rows.size() * heads.n_heads * sizeof(SoftmaxPart), std::size_t{64});
  std::byte* const memory = attention_scratch_.at_least(parts_bytes + n_threads * work_bytes +
                                                        n_units_max * result_bytes);
  // What has been merged of each row and head; its values lie in out.
  auto* const merged = reinterpret_cast<SoftmaxPart*>(memory);
  std::byte* const works = memory + parts_bytes;
  std::byte* const results = works + n_threads * work_bytes;

  // The query heads [first, end) that use a KV head.
  const auto heads_of = [&](std::size_t kv_head) {
    const std::size_t end = (kv_head + 1) * n_group - heads.n_before;
    return sys::Partition{kv_head == 0 ? 0 : end - n_group, std::min(end, heads.n_heads)};
  };
  const auto rows_of = [&](const AttentionUnit& unit, std::size_t kv_head) {
    const sys::Partition own = heads_of(kv_head);
    const std::size_t n_before = own.begin - heads_of(unit.head_begin).begin;
    return HeadRows(units, unit, own.size(), n_before * unit.group->n_rows);
  };
  const auto compute = [&](std::size_t i, std::size_t thread) {
    const AttentionUnit& unit = units.units()[i];
    const RowGroup& group = *unit.group;
    const Work work = Work::at(works + thread * work_bytes, shape);
    float* to = work.q;
    for (std::size_t kv_head = unit.head_begin; kv_head < unit.head_end; ++kv_head) {
      const sys::Partition own = heads_of(kv_head);
      for (std::size_t r = group.row; r < group.row + group.n_rows; ++r) {
        const float* const from = q.row(r) + own.begin * head_dim;
        for (std::size_t d = 0; d < own.size() * head_dim; ++d) *to++ = from[d] * scale;
      }
    }
    attend(
        table_, layer, batch.page_tables[batch.rows[group.row].sequence], unit,
        [&](std::size_t kv_head) { return rows_of(unit, kv_head); }, work,
        Result::at(results + i * result_bytes, shape));
  };
  // Adds the wave's results of row i of a KV head to what was merged before.
  const auto merge = [&](const UnitSpan& span, std::size_t kv_head, std::size_t i) {
    const AttentionUnit& first_unit = units.units()[span.begin];
    const sys::Partition own = heads_of(kv_head);
    const std::size_t r = first_unit.group->row + i / own.size();
    const std::size_t head = own.begin + i % own.size();
    const std::size_t at = rows_of(first_unit, kv_head).base() + i;
    const Seen& seen = units.seen(r);
    const std::size_t last = (seen.end - 1) / kBlockTokens;
    float* const to = out.row(r) + head * head_dim;
    SoftmaxPart& running = merged[r * heads.n_heads + head];
    for (std::size_t u = span.begin; u < span.end; ++u) {
      const std::size_t block = units.units()[u].block;
      if (block < seen.first / kBlockTokens || block > last) continue;
      const Result result = Result::at(results + u * result_bytes, shape);
      const float* const values = result.values + at * head_dim;
      if (block == seen.first / kBlockTokens) {
        std::memcpy(to, values, head_dim * sizeof(float));
        running = result.parts[at];
      } else {
        table_.merge_part(values, result.parts[at], head_dim, to, running);
      }
      if (block < last) continue;
      const float inverse = 1.0F / running.sum;
      for (std::size_t d = 0; d < head_dim; ++d) to[d] *= inverse;
    }
  };

  const std::size_t bytes = tokens_seen * layer.token_bytes();
  while (units.next_wave(n_units_max)) {
    run(bytes, [&](std::size_t thread, std::size_t n) {
      const std::size_t begin = units.cost() * thread / n;
      const std::size_t end = units.cost() * (thread + 1) / n;
      for (std::size_t i = 0; i < units.units().size(); ++i) {
        if (units.units()[i].cost >= begin && units.units()[i].cost < end) compute(i, thread);
      }
    });
    run(units.units().size() * result_bytes, [&](std::size_t thread, std::size_t n) {
      std::size_t turn = 0;
      for (const UnitSpan& span : units.spans()) {
        const AttentionUnit& unit = units.units()[span.begin];
        for (std::size_t head = unit.head_begin; head < unit.head_end; ++head) {
          const std::size_t n_rows = unit.group->n_rows * heads_of(head).size();
          for (std::size_t i = 0; i < n_rows; ++i, ++turn) {
            if (turn % n == thread) merge(span, head, i);
          }
        }
      }
    });
  }
}

}  // namespace recua::compute
