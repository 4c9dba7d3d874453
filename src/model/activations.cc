#include "model/activations.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/check.h"
#include "model/tensor_part.h"

namespace recua::model {

Result<void> RowBuffer::allocate(compute::Device& device, const char* what, std::size_t n_rows,
                                 std::size_t n_cols) {
  const std::size_t bytes = n_rows * n_cols * sizeof(float);
  Result<std::unique_ptr<compute::Buffer>> buffer = device.allocate(bytes);
  if (!buffer.ok()) {
    return std::move(buffer).error().within(fmt::format(
        "activations ({}: {} rows of {}; a smaller micro-batch needs less)", what, n_rows, n_cols));
  }
  buffer_ = std::move(buffer).value();
  n_cols_ = n_cols;
  return ok();
}

SplitInput SplitInput::of(Range own, std::size_t n_cols) {
  constexpr std::size_t kBlockMax = 256;  // Of all types; smaller blocks lie within.
  Range held = model::whole_blocks(own, kBlockMax);
  held.end = std::min(held.end, static_cast<std::uint32_t>(n_cols));
  return {.own = own, .held = held};
}

compute::Rows SplitInput::whole_blocks(const RowBuffer& buffer, std::size_t n_rows,
                                       quant::DataType type) const {
  const Range cols = model::whole_blocks(own, quant::traits(type).block_size);
  RECUA_CHECK(cols.begin >= held.begin && cols.end <= held.end);
  return buffer.cols(n_rows, cols.begin - held.begin, cols.size());
}

namespace {

constexpr std::size_t kLineFloats = 16;  // Buffers begin at lines of 64 bytes.

// Rows that a feed-forward takes at a time: its gate and up are most of the working memory,
// and products of 256 rows are as fast as those of 512.
constexpr std::size_t kFeedForwardRows = 256;

// Matrices that stay in a second-level cache from piece to piece can have smaller ones, which
// matters where a model is small: one of 135 M weights was as fast in pieces of 128 rows, one of
// 1.24 B up to 2 % slower.
constexpr std::size_t kSmallMatrix = std::size_t{1} << 20U;  // Weights.
constexpr std::size_t kSmallFeedForwardRows = 128;

// Where rows lie: in memory of their own, or in Activations::shared. There those of one kind lie
// one after another: the queries and the feed-forward's from the beginning on, the two others
// behind the queries.
enum class Memory { kOwn, kQueries, kKeysValues, kAttended, kFeedForward };

struct NeededRows {
  RowBuffer Activations::* buffer;
  const char* what;
  std::size_t n_rows;
  std::size_t n_cols;
  Memory memory = Memory::kOwn;

  [[nodiscard]] std::size_t floats() const { return n_rows * n_cols; }
};

// Where shared rows begin, in floats; queries are placed first.
class SharedMemory {
 public:
  std::size_t place(const NeededRows& rows) {
    const bool behind = rows.memory == Memory::kKeysValues || rows.memory == Memory::kAttended;
    const std::size_t size = align_up(rows.floats(), kLineFloats);
    const std::size_t begin = std::exchange(used(rows.memory), used(rows.memory) + size);
    return begin + (behind ? used(Memory::kQueries) : 0);
  }
  [[nodiscard]] std::size_t floats() {
    const std::size_t behind = std::max(used(Memory::kKeysValues), used(Memory::kAttended));
    return std::max(used(Memory::kQueries) + behind, used(Memory::kFeedForward));
  }

 private:
  std::size_t& used(Memory kind) { return used_.at(static_cast<std::size_t>(kind)); }

  std::array<std::size_t, 5> used_{};  // By kind.
};

std::size_t shared_floats(const std::vector<NeededRows>& needed) {
  SharedMemory shared;
  for (const NeededRows& rows : needed) {
    if (rows.memory != Memory::kOwn) shared.place(rows);
  }
  return shared.floats();
}

std::size_t feed_forward_rows_of(const HyperParams& hp, const Share& share, std::size_t n_rows) {
  if (hp.n_experts > 0) return n_rows;
  const bool small = std::size_t{hp.hidden_size} * share.ffn.size() <= kSmallMatrix;
  return std::min(n_rows, small ? kSmallFeedForwardRows : kFeedForwardRows);
}

std::vector<NeededRows> needed_rows(const HyperParams& hp, const Share& share, std::size_t n_rows,
                                    std::size_t n_logit_rows, std::size_t attended_size,
                                    std::size_t gate_size) {
  using A = Activations;
  const std::size_t hidden = hp.hidden_size;
  const std::size_t q_size = std::size_t{share.heads.size()} * hp.head_dim;
  const std::size_t kv_size = std::size_t{share.kv_heads.size()} * hp.head_dim;
  const std::size_t n_used = hp.n_experts == 0 ? 1 : hp.n_experts_used;
  const std::size_t n_ffn_rows = feed_forward_rows_of(hp, share, n_rows) * n_used;
  // Columns that must stay zero are in memory that nobody else writes.
  const Memory attended = attended_size == q_size ? Memory::kAttended : Memory::kOwn;
  const Memory gate = gate_size == share.ffn.size() ? Memory::kFeedForward : Memory::kOwn;
  std::vector<NeededRows> out = {
      {&A::x, "x", n_rows, hidden},
      {&A::x_selected, "x", n_rows, hidden},
      {&A::normed, "norm", n_rows, hidden},
      {&A::q, "q", n_rows, q_size, Memory::kQueries},
      {&A::k, "k", n_rows, kv_size, Memory::kKeysValues},
      {&A::v, "v", n_rows, kv_size, Memory::kKeysValues},
      {&A::attended, "attention", n_rows, attended_size, attended},
      {&A::rope, "RoPE", n_rows, hp.rope_dim},
      {&A::rope_selected, "RoPE", n_rows, hp.rope_dim},
      {&A::gate, "gate", n_ffn_rows, gate_size, gate},
      {&A::up, "up", n_ffn_rows, share.ffn.size(), Memory::kFeedForward},
  };
  if (hp.n_experts > 0) {
    static_assert(sizeof(std::int32_t) == sizeof(float));
    out.push_back({&A::projected, "projection", n_rows, hidden});
    out.push_back({&A::expert_out, "experts", n_ffn_rows, hidden});
    out.push_back({&A::router, "router", n_rows, hp.n_experts});
    out.push_back({&A::expert_ids, "router", n_rows, n_used});
    out.push_back({&A::expert_weights, "router", n_rows, n_used});
  }
  if (n_logit_rows > 0) out.push_back({&A::logits, "logits", n_logit_rows, hp.vocab_size});
  if (n_logit_rows > 0 && share.vocab != whole_share(hp).vocab) {
    out.push_back({&A::own_logits, "logits", n_logit_rows, share.vocab.size()});
    out.push_back({&A::gathered_logits, "logits", n_logit_rows, hp.vocab_size});
  }
  return out;
}

SplitInput attended_cols_of(const HyperParams& hp, const Share& share) {
  return SplitInput::of({share.heads.begin * hp.head_dim, share.heads.end * hp.head_dim},
                        hp.n_heads * hp.head_dim);
}

SplitInput gate_cols_of(const HyperParams& hp, const Share& share) {
  return SplitInput::of(share.ffn, whole_share(hp).ffn.size());
}

}  // namespace

Result<Activations> Activations::create(compute::Device& device, const HyperParams& hp,
                                        const Share& share, std::size_t n_rows,
                                        std::size_t n_logit_rows) {
  Activations a;
  a.attended_cols = attended_cols_of(hp, share);
  a.gate_cols = gate_cols_of(hp, share);
  a.feed_forward_rows = feed_forward_rows_of(hp, share, n_rows);
  const std::vector<NeededRows> needed = needed_rows(
      hp, share, n_rows, n_logit_rows, a.attended_cols.held.size(), a.gate_cols.held.size());
  RECUA_RETURN_IF_ERROR(
      a.shared.allocate(device, "attention and feed-forward", 1, shared_floats(needed)));
  SharedMemory shared;
  for (const NeededRows& rows : needed) {
    if (rows.memory == Memory::kOwn) {
      RECUA_RETURN_IF_ERROR((a.*rows.buffer).allocate(device, rows.what, rows.n_rows, rows.n_cols));
    } else {
      (a.*rows.buffer).share(a.shared, shared.place(rows), rows.n_cols);
    }
  }
  if (a.projected.buffer() == nullptr) a.projected.share(a.normed, 0, hp.hidden_size);
  return a;
}

std::size_t Activations::bytes(const HyperParams& hp, const Share& share, std::size_t n_rows,
                               std::size_t n_logit_rows) {
  const std::vector<NeededRows> needed =
      needed_rows(hp, share, n_rows, n_logit_rows, attended_cols_of(hp, share).held.size(),
                  gate_cols_of(hp, share).held.size());
  std::size_t floats = shared_floats(needed);
  for (const NeededRows& rows : needed) {
    if (rows.memory == Memory::kOwn) floats += rows.floats();
  }
  return floats * sizeof(float);
}

Result<void> Activations::allocate_lora(compute::Device& device, std::size_t n_rows,
                                        std::size_t rank, std::size_t n_out) {
  RECUA_RETURN_IF_ERROR(lora_low.allocate(device, "adapter", n_rows, rank));
  return lora_added.allocate(device, "adapter", n_rows, n_out);
}

}  // namespace recua::model
