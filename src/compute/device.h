#pragma once
/// Device: memory, and the operators of a transformer on it. The forward pass of every architecture
/// is written once against this interface (model/forward.h); the CPU is the first device.
///
/// Activations are f32 rows, one row per token, in buffers of the device. Operators are enqueued in
/// call order and see each other's results; the host may read a buffer only after sync(). (The CPU
/// device computes at once; a GPU may not.) Spans passed to an operator are copied or used before
/// it returns.
///
/// Row invariance: every operator computes a row from that row, its sequence and the weights only,
/// summing in one fixed order, so the result does not depend on how many rows come along, how they
/// are divided over calls, or the number of threads (docs/architecture.md; held by a property
/// test).
///
/// Errors: allocation and loading return a Result. Shapes are the caller's duty (RECUA_CHECK).
/// Threads: one thread at a time calls a Device.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "quant/data_type.h"

namespace recua::compute {

/// A piece of device memory, aligned to 64 bytes. Owned by whoever allocated it, or a view of
/// memory that is somebody else's (Device::import).
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  virtual ~Buffer() = default;

  [[nodiscard]] virtual std::size_t bytes() const = 0;
  /// Where the host sees the memory; null when it does not. Such memory can be registered with a
  /// network, so that an operator's output is sent from where it lies.
  [[nodiscard]] virtual std::byte* host() const = 0;
};

/// Borrowed view of f32 rows. Row r begins at float offset + r * stride of the buffer.
struct Rows {
  Buffer* buffer = nullptr;
  std::size_t offset = 0;
  std::size_t n_rows = 0;
  std::size_t n_cols = 0;
  std::size_t stride = 0;

  /// Host address of row r; only for host-visible buffers, after sync().
  [[nodiscard]] float* row(std::size_t r) const {
    return reinterpret_cast<float*>(buffer->host()) + offset + r * stride;
  }
  /// The rows [begin, begin + n).
  [[nodiscard]] Rows slice_rows(std::size_t begin, std::size_t n) const {
    return {buffer, offset + begin * stride, n, n_cols, stride};
  }
  /// The columns [begin, begin + n) of every row.
  [[nodiscard]] Rows slice_cols(std::size_t begin, std::size_t n) const {
    return {buffer, offset + begin, n_rows, n, stride};
  }
};

/// Rows that fill a buffer from its start without gaps.
inline Rows dense_rows(Buffer& buffer, std::size_t n_rows, std::size_t n_cols) {
  return {&buffer, 0, n_rows, n_cols, n_cols};
}

/// A loaded weight matrix [n_experts, n_out, n_in], each row n_in elements of `type`. How it lies
/// in memory is the device's business (it may repack).
class Weight {
 public:
  Weight() = default;
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;
  virtual ~Weight() = default;

  [[nodiscard]] virtual quant::DataType type() const = 0;
  [[nodiscard]] virtual std::size_t n_in() const = 0;
  [[nodiscard]] virtual std::size_t n_out() const = 0;
  [[nodiscard]] virtual std::size_t n_experts() const = 0;
};

/// Bytes of a tensor as a GGUF file holds them, and what keeps them alive (a mapped file, a
/// buffer).
struct TensorBytes {
  std::string name;  // For error messages.
  quant::DataType type = quant::DataType::kF32;
  std::size_t n_in = 0;       // Elements of a row; a multiple of the type's block size.
  std::size_t n_out = 1;      // Rows.
  std::size_t n_experts = 1;  // Matrices.
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner = {};
  bool in_mapped_file = false;  // So that a device that copies them may drop the file's pages.
};

/// How pairs of a head are rotated. Interleaved: (0,1), (2,3)... (llama in GGUF); split half:
/// (0, n/2), (1, n/2+1)... (qwen).
enum class RopeKind { kInterleaved, kSplitHalf };

/// One layer of a paged KV cache. Page p begins at byte offset + p * page_stride and holds, for
/// each KV head, its keys of page_tokens tokens in groups of kKeyGroup ([head_dim][kKeyGroup] each;
/// the last one may be partly used); then, for each KV head, its values [page_tokens, head_dim].
/// kernels/attention.h has the groups to the byte. A head's keys, and its values, of one page lie
/// in one piece, since they are read together: with all heads of a token side by side, reading one
/// head's took four times as long.
inline constexpr std::size_t kKeyGroup = 16;

struct KvLayer {
  Buffer* buffer = nullptr;
  std::size_t offset = 0;
  std::size_t page_stride = 0;  // At least page_bytes().
  std::size_t n_pages = 0;
  std::size_t page_tokens = 0;
  std::size_t n_kv_heads = 0;
  std::size_t head_dim = 0;                        // A multiple of the block size of both types.
  quant::DataType k_type = quant::DataType::kF16;  // kF16, kF32, kQ8_0 or kQ4_0
  quant::DataType v_type = quant::DataType::kF16;

  /// Of one KV head in one page.
  [[nodiscard]] std::size_t k_head_bytes() const {
    return (page_tokens + kKeyGroup - 1) / kKeyGroup * kKeyGroup *
           quant::row_bytes(k_type, head_dim);
  }
  [[nodiscard]] std::size_t v_head_bytes() const {
    return page_tokens * quant::row_bytes(v_type, head_dim);
  }
  [[nodiscard]] std::size_t page_bytes() const {
    return n_kv_heads * (k_head_bytes() + v_head_bytes());
  }
  /// Keys and values of one token, without what a partly used group leaves empty.
  [[nodiscard]] std::size_t token_bytes() const {
    return n_kv_heads * (quant::row_bytes(k_type, head_dim) + quant::row_bytes(v_type, head_dim));
  }
};

/// How query heads share KV heads: query head h uses KV head (n_before + h) / n_group. n_before
/// heads of the first KV head's group are elsewhere (another rank has them); the last may lack
/// some, too.
struct HeadGroups {
  std::size_t n_heads = 0;
  std::size_t n_group = 1;
  std::size_t n_before = 0;  // Below n_group.

  [[nodiscard]] constexpr std::size_t n_kv_heads() const {
    return (n_before + n_heads + n_group - 1) / n_group;
  }
};

/// Which tokens each row of a step sees.
struct AttentionRow {
  std::uint32_t sequence = 0;  // Index into page_tables.
  std::uint32_t position = 0;  // The row's own; it sees the positions 0 .. position.
};
struct AttentionBatch {
  std::span<const AttentionRow> rows;
  /// Per sequence: page_tables[s][i] holds its positions i * page_tokens and following.
  std::span<const std::span<const std::uint32_t>> page_tables;
};

/// One of several products with the same rows.
struct Product {
  const Weight* w = nullptr;
  Rows out = {};  // [x.n_rows, w->n_out()]
};

/// Which experts each token uses, in ascending order of their ids.
struct Route {
  std::size_t n_used = 0;
  Buffer* ids = nullptr;      // i32 [n_tokens, n_used]
  Buffer* weights = nullptr;  // f32 [n_tokens, n_used]
};

/// The matrices of a feed-forward of experts, and where its steps leave their results: rows
/// t * n_used + u, of expert ids[t, u]. down may be the part of a matrix that has more columns than
/// gate has rows: then gate_out are columns of down_in, and the others hold zeros.
struct ExpertFeedForward {
  const Weight* gate = nullptr;
  const Weight* up = nullptr;
  const Weight* down = nullptr;
  Rows gate_out = {};  // [n * n_used, gate->n_out()], a view of down_in
  Rows up_out = {};    // [n * n_used, up->n_out()]
  Rows down_in = {};   // [n * n_used, down->n_in()]
  Rows down_out = {};  // [n * n_used, down->n_out()]
};

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  virtual ~Device() = default;

  /// For the start-up line: "cpu avx2, 2 threads".
  [[nodiscard]] virtual std::string description() const = 0;

  /// Zeroed memory. kResourceExhausted: says how much was asked for.
  virtual Result<std::unique_ptr<Buffer>> allocate(std::size_t bytes) = 0;
  /// A buffer over memory that somebody else made (a ring that another process writes into, say),
  /// so that operators read and write where it lies. owner keeps the memory alive as long as the
  /// buffer lives; null when the caller sees to that. kInvalidArgument: not aligned to 64 bytes.
  /// kUnsupported: this device's operators cannot reach the host's memory.
  virtual Result<std::unique_ptr<Buffer>> import(std::span<std::byte> host_memory,
                                                 std::shared_ptr<const void> owner);
  /// kCorrupt: the byte count does not fit the shape. kResourceExhausted: no memory for a copy.
  /// The bytes may stay borrowed (owner is kept).
  virtual Result<std::unique_ptr<Weight>> load_weight(TensorBytes bytes) = 0;
  /// A vector of n_in elements (norm, bias, RoPE factors) of any type, converted to f32.
  virtual Result<std::unique_ptr<Buffer>> load_vector(const TensorBytes& bytes) = 0;

  /// out[t] = row ids[t] - first_id of table, or zeros if it has no such row: the table may be the
  /// part of a larger one that begins with row first_id.    out: [ids.size(), n_in]
  virtual void embed(const Weight& table, std::int32_t first_id, std::span<const std::int32_t> ids,
                     Rows out) = 0;
  /// out[t, o] = sum over i of w[o, i] * x[t, i].    x: [n, n_in], out: [n, n_out]; not aliased.
  /// Quantized weights may take x rounded to 8 bits per block of a row.
  virtual void matmul(const Weight& w, Rows x, Rows out) = 0;
  /// matmul() of each with the same x. Here one after the other; a device that does better gives
  /// the same bits.
  virtual void matmul_each(std::span<const Product> products, Rows x);
  /// gate.out = silu(gate . x) * (up . x), both of one shape; up.out then holds anything. Here as
  /// three operators, with the same bits.
  virtual void matmul_gated(const Product& gate, const Product& up, Rows x);
  /// x[t, i] += bias[i].
  virtual void add_bias(Rows x, const Buffer& bias) = 0;
  /// out[t, i] = x[t, i] * weight[i] / sqrt(mean of x[t]^2 + eps).    out may be x.
  virtual void rms_norm(Rows x, const Buffer& weight, float eps, Rows out) = 0;
  /// table[t] = cos, sin of positions[t] * inv_freq[j], each times magnitude, for j < n_rot / 2.
  /// inv_freq: f32 [n_rot / 2].  table: [n, n_rot], cos and sin alternating. Angles in double.
  virtual void rope_table(std::span<const std::uint32_t> positions, const Buffer& inv_freq,
                          float magnitude, Rows table) = 0;
  /// Rotates the first table.n_cols elements of each of n_heads heads. x: [n, n_heads * head_dim].
  virtual void rope(Rows x, std::size_t n_heads, RopeKind kind, Rows table) = 0;
  /// Writes row t of k and v, converted to the cache's types, to page slots[t] / page_tokens, place
  /// slots[t] % page_tokens.    k, v: [n, n_kv_heads * head_dim]
  virtual void store_kv(const KvLayer& layer, Rows k, Rows v,
                        std::span<const std::uint64_t> slots) = 0;
  /// out[t, h] = softmax(scale * q[t, h] . K) V over the positions row t sees; with window > 0 only
  /// the last `window` of them (its own included). Which KV head's, heads tells; it needs as many
  /// as the layer has. q, out: [n, n_heads * head_dim]
  virtual void attention(const KvLayer& layer, Rows q, const HeadGroups& heads,
                         const AttentionBatch& batch, float scale, std::uint32_t window,
                         Rows out) = 0;
  /// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).    out may be gate or up.
  virtual void silu_mul(Rows gate, Rows up, Rows out) = 0;
  /// out = a + b.    out may be a or b.
  virtual void add(Rows a, Rows b, Rows out) = 0;
  /// out[i] = x[rows[i]].    Not aliased.
  virtual void gather_rows(Rows x, std::span<const std::uint32_t> rows, Rows out) = 0;
  /// p = softmax(logits[t]); the n_used largest (ties: lower id first), their p divided by their
  /// sum when renormalize, written in ascending order of expert id.    logits: [n, n_experts]
  virtual void moe_route(Rows logits, bool renormalize, const Route& route) = 0;
  /// out[t * n_used + u] = w[ids[t, u]] . x, where x is row t (x.n_rows == n) or row t * n_used + u
  /// (x.n_rows == n * n_used).    out: [n * n_used, n_out]
  virtual void moe_matmul(const Weight& w, Rows x, const Route& route, Rows out) = 0;
  /// out[t] = sum over u of weights[t, u] * x[t * n_used + u], u ascending.
  virtual void moe_combine(Rows x, const Route& route, Rows out) = 0;
  /// out[t] = sum over u of weights[t, u] * down . (silu(gate . x[t]) * (up . x[t])), each matrix
  /// that of expert ids[t, u]. Afterwards the rows of ff hold anything, zeros still where they did.
  /// Here as four operators, one after the other; a device that does better gives the same bits.
  virtual void moe_feed_forward(const ExpertFeedForward& ff, Rows x, const Route& route, Rows out);

  /// Waits until the results of all operators so far are visible to the host.
  virtual void sync() = 0;
};

inline Result<std::unique_ptr<Buffer>> Device::import(std::span<std::byte> /*host_memory*/,
                                                      std::shared_ptr<const void> /*owner*/) {
  return Error{ErrorCode::kUnsupported,
               description() + ": its operators cannot work in memory of the host"};
}

}  // namespace recua::compute
