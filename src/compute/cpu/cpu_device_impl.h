#pragma once
/// Inside of the CPU device: only cpu_*.cc include this.
///
/// Every operator has the same shape: check the arguments, decide whether the work is worth waking
/// the team (Work), and let each thread do its share by the kernels of table_, or help others with
/// theirs (run_shares).

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "compute/cpu/attention_units.h"
#include "compute/cpu/expert_plan.h"
#include "compute/cpu/row_pieces.h"
#include "compute/device.h"
#include "kernels/kernel_table.h"
#include "kernels/packed.h"
#include "sys/aligned_buffer.h"
#include "sys/thread_pool.h"

namespace recua::compute {

class CpuBuffer final : public Buffer {
 public:
  explicit CpuBuffer(sys::AlignedBuffer memory) : memory_(std::move(memory)) {}
  [[nodiscard]] std::size_t bytes() const override { return memory_.size(); }
  [[nodiscard]] std::byte* host() const override { return memory_.data(); }

 private:
  sys::AlignedBuffer memory_;
};

/// Memory that is somebody else's, and what keeps it alive.
class CpuImportedBuffer final : public Buffer {
 public:
  CpuImportedBuffer(std::span<std::byte> memory, std::shared_ptr<const void> owner)
      : memory_(memory), owner_(std::move(owner)) {}
  [[nodiscard]] std::size_t bytes() const override { return memory_.size(); }
  [[nodiscard]] std::byte* host() const override { return memory_.data(); }

 private:
  std::span<std::byte> memory_;
  std::shared_ptr<const void> owner_;
};

/// Memory of weights that were copied, cut from large blocks: huge pages hold the ends and
/// beginnings of neighbours, instead of being wasted on the end of each.
class WeightMemory {
 public:
  struct Piece {
    std::shared_ptr<const sys::AlignedBuffer> block;  // Keeps the bytes alive.
    std::span<std::byte> bytes;                       // 64-byte aligned.
  };
  Result<Piece> take(std::size_t bytes);

 private:
  std::shared_ptr<const sys::AlignedBuffer> block_;
  std::size_t used_ = 0;
};

/// Threads meet at multiples of a cache line of outputs.
inline constexpr std::size_t kRowGranule = 16;

/// Rows as the file has them, or packed in groups, each expert's from a group of its own.
class CpuWeight final : public Weight {
 public:
  explicit CpuWeight(TensorBytes tensor)
      : tensor_(std::move(tensor)), row_bytes_(quant::row_bytes(tensor_.type, tensor_.n_in)) {}
  /// tensor without its bytes, and [n_experts, n_packed_groups(type, n_out)] groups of them.
  CpuWeight(TensorBytes tensor, WeightMemory::Piece packed) : CpuWeight(std::move(tensor)) {
    packed_ = std::move(packed);
    expert_groups_ = kernels::n_packed_groups(tensor_.type, tensor_.n_out);
  }
  [[nodiscard]] quant::DataType type() const override { return tensor_.type; }
  [[nodiscard]] std::size_t n_in() const override { return tensor_.n_in; }
  [[nodiscard]] std::size_t n_out() const override { return tensor_.n_out; }
  [[nodiscard]] std::size_t n_experts() const override { return tensor_.n_experts; }

  [[nodiscard]] bool is_packed() const { return expert_groups_ != 0; }
  [[nodiscard]] std::size_t row_bytes() const { return row_bytes_; }
  /// What a kernel takes to begin with row `out`; of packed weights that is one that begins a
  /// group.
  [[nodiscard]] const std::byte* at(std::size_t expert, std::size_t out) const {
    if (!is_packed()) return tensor_.bytes.data() + (expert * tensor_.n_out + out) * row_bytes_;
    return packed_.bytes.data() + (expert * expert_groups_ + out / group_rows()) * stride();
  }
  /// From row to row, or from group to group.
  [[nodiscard]] std::size_t stride() const { return group_rows() * row_bytes_; }
  /// Rows of a group, 1 if they are not packed.
  [[nodiscard]] std::size_t group_rows() const {
    return is_packed() ? kernels::packed_rows(type()) : 1;
  }
  /// Where threads meet: at multiples of kRowGranule that begin a group.
  [[nodiscard]] std::size_t row_granule() const { return std::max(kRowGranule, group_rows()); }
  [[nodiscard]] kernels::ActivationKind activation_kind(const kernels::KernelTable& table) const {
    return is_packed() ? table.packed_activation_kind(type()) : kernels::activation_kind(type());
  }
  [[nodiscard]] kernels::MatmulFn kernel(const kernels::KernelTable& table) const {
    return is_packed() ? table.packed_matmul(type()) : table.matmul(type());
  }
  /// Row `out` of the first matrix as f32 [n_in].
  void dequantize_row(std::size_t out, float* to) const;

 private:
  TensorBytes tensor_;  // Borrowed bytes and what keeps them alive; no bytes when packed.
  std::size_t row_bytes_ = 0;
  WeightMemory::Piece packed_;
  std::size_t expert_groups_ = 0;  // 0: not packed.
};

/// Memory that grows to what was needed at most and stays. What it held is lost when it grows.
class Scratch {
 public:
  std::byte* at_least(std::size_t bytes);
  [[nodiscard]] std::byte* data() const { return memory_.data(); }

 private:
  sys::AlignedBuffer memory_;
};

/// Where threads meet that multiply by both.
inline std::size_t row_granule(const CpuWeight& a, const CpuWeight& b) {
  return std::max(a.row_granule(), b.row_granule());
}

/// What a gated product reads and writes: a row of x, gate_out and up_out per token.
struct GatedRows {
  const CpuWeight* gate = nullptr;
  const CpuWeight* up = nullptr;
  std::size_t expert = 0;
  std::span<const std::byte* const> x;
  std::span<float* const> gate_out, up_out;
};

/// Rows of the pairs of a route, by place (ExpertPlan).
struct ExpertRows {
  std::vector<const std::byte*> x;
  std::vector<const std::byte*> down_x;
  std::vector<float*> gate, up, down;
};

class CpuDevice final : public Device {
 public:
  CpuDevice(const kernels::KernelTable& table, std::size_t n_threads, bool repack,
            std::vector<std::vector<std::uint32_t>> cpus)
      : table_(table), repack_(repack), pool_(n_threads, std::move(cpus)) {}

  [[nodiscard]] std::string description() const override;
  Result<std::unique_ptr<Buffer>> allocate(std::size_t bytes) override;
  Result<std::unique_ptr<Buffer>> import(std::span<std::byte> host_memory,
                                         std::shared_ptr<const void> owner) override;
  Result<std::unique_ptr<Weight>> load_weight(TensorBytes bytes) override;
  Result<std::unique_ptr<Buffer>> load_vector(const TensorBytes& bytes) override;

  void embed(const Weight& table, std::int32_t first_id, std::span<const std::int32_t> ids,
             Rows out) override;
  void matmul(const Weight& w, Rows x, Rows out) override;
  void matmul_each(std::span<const Product> products, Rows x) override;
  void matmul_gated(const Product& gate, const Product& up, Rows x) override;
  void add_bias(Rows x, const Buffer& bias) override;
  void rms_norm(Rows x, const Buffer& weight, float eps, Rows out) override;
  void rope_table(std::span<const std::uint32_t> positions, const Buffer& inv_freq, float magnitude,
                  Rows table) override;
  void rope(Rows x, std::size_t n_heads, RopeKind kind, Rows table) override;
  void store_kv(const KvLayer& layer, Rows k, Rows v,
                std::span<const std::uint64_t> slots) override;
  void attention(const KvLayer& layer, Rows q, const HeadGroups& heads, const AttentionBatch& batch,
                 float scale, std::uint32_t window, Rows out) override;
  void silu_mul(Rows gate, Rows up, Rows out) override;
  void add(Rows a, Rows b, Rows out) override;
  void gather_rows(Rows x, std::span<const std::uint32_t> rows, Rows out) override;
  void moe_route(Rows logits, bool renormalize, const Route& route) override;
  void moe_matmul(const Weight& w, Rows x, const Route& route, Rows out) override;
  void moe_combine(Rows x, const Route& route, Rows out) override;
  void moe_feed_forward(const ExpertFeedForward& ff, Rows x, const Route& route, Rows out) override;
  void sync() override {}

 private:
  /// fn(thread, n_threads) on all threads, or on this one alone when `bytes`, roughly what the
  /// operator reads and writes, are too few to be worth a hand-over (1 to 2 us there and back).
  template <class Fn>
  void run(std::size_t bytes, Fn&& fn) {
    if (bytes < kParallelBytes) {
      fn(std::size_t{0}, std::size_t{1});
    } else {
      pool_.run(fn);
    }
  }
  /// work(owner, pieces) for all pieces of the shares of team_size(bytes) threads.
  template <class Count, class Work>
  void run_shares(std::size_t bytes, Count&& n_pieces, Work&& work) {
    if (bytes < kParallelBytes) {
      work(std::size_t{0}, sys::Partition{0, n_pieces(std::size_t{0})});
    } else {
      pool_.run_shares(n_pieces, work);
    }
  }
  [[nodiscard]] std::size_t team_size(std::size_t bytes) const {
    return bytes < kParallelBytes ? 1 : pool_.n_threads();
  }
  /// fn(row) for the rows of an operator that treats them one by one.
  template <class Fn>
  void for_rows(std::size_t n_rows, std::size_t row_bytes, Fn&& fn) {
    run(n_rows * row_bytes, [&](std::size_t thread, std::size_t n_threads) {
      const sys::Partition part = sys::partition(n_rows, thread, n_threads);
      for (std::size_t r = part.begin; r < part.end; ++r) fn(r);
    });
  }

  /// Copies a weight into its packed form, and drops the pages of a mapped file on the way.
  Result<std::unique_ptr<Weight>> pack_weight(TensorBytes tensor);
  /// Fills x_rows_ with what kernels take for each row of x.
  void prepare_activations(kernels::ActivationKind kind, Rows x);
  /// Checks products with x, and fills out_rows_ with the rows of their results, one product's
  /// after the other's.
  void place_outputs(std::span<const Product> products, Rows x);
  /// Products whose kernels take x in the same form: one job for the team, so that a thread that is
  /// done with its rows of one goes on with the next, and then with rows that others have left.
  void multiply_alike(std::span<const Product> products, Rows x);
  /// These rows of both matrices times all tokens, and silu(gate) * up of them.
  void multiply_gated(const GatedRows& all, sys::Partition rows);
  /// Sorts the pairs of a route by expert, and fills expert_rows_.x from x_rows_.
  void plan_experts(const CpuWeight& w, const Route& route, std::size_t n_pairs);
  /// Rows [begin, end) of an expert's gate and up matrices times its tokens, and their product.
  void expert_gate_up(const ExpertFeedForward& ff, std::size_t expert, sys::Partition rows);
  void feed_forward_whole(const ExpertFeedForward& ff, std::size_t bytes);
  void feed_forward_cut(const ExpertFeedForward& ff, const Route& route, std::size_t bytes,
                        Rows out);
  /// Fills expert_rows_.down_x with where expert_round() leaves the pairs' rows.
  void place_down_inputs(const ExpertFeedForward& ff);
  /// Makes what down takes of the pairs at these places.
  void expert_round(const ExpertFeedForward& ff, sys::Partition places);
  void expert_down(const ExpertFeedForward& ff, std::size_t expert, sys::Partition rows);
  /// The columns [begin, end) of a row of moe_combine().
  void combine(Rows x, const Route& route, std::size_t token, sys::Partition cols, Rows out);

  static constexpr std::size_t kParallelBytes = std::size_t{64} << 10U;

  const kernels::KernelTable& table_;
  bool repack_;
  sys::ThreadPool pool_;
  WeightMemory weight_memory_;
  Scratch activations_;
  Scratch attention_scratch_;
  AttentionUnits attention_units_;
  std::vector<const std::byte*> x_rows_;  // Per row of x.
  std::vector<float*> out_rows_;
  std::vector<RowPieces> pieces_;  // Per product of multiply_alike().
  ExpertPlan expert_plan_;
  ExpertRows expert_rows_;
  Scratch expert_activations_;
  std::vector<bool> taken_;
};

/// Some of the rows of one expert's matrix times tokens: a row of x, as its kernel takes it, and
/// one of out for each.
void multiply_rows(const kernels::KernelTable& table, const CpuWeight& w, std::size_t expert,
                   sys::Partition rows, std::span<const std::byte* const> x,
                   std::span<float* const> out);

/// The rows lie in a host-visible buffer, from end to end.
void check_rows(const Rows& rows);
inline const CpuWeight& as_cpu(const Weight& weight) {
  return static_cast<const CpuWeight&>(weight);
}
inline const float* floats(const Buffer& buffer) {
  return reinterpret_cast<const float*>(buffer.host());
}

}  // namespace recua::compute
