// Tensor by tensor, in chunks of rows: threads convert a chunk, then it is written. Rows are
// independent, so the file does not depend on the number of threads.
#include "cli/quantize_model.h"

#include <algorithm>
#include <atomic>
#include <span>

#include <fmt/format.h>

#include "gguf/gguf_writer.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"
#include "sys/thread_pool.h"

namespace recua::cli {
namespace {

using gguf::GgufFile;
using gguf::TensorInfo;

constexpr std::uint64_t kChunkBytes = std::uint64_t{32} << 20;  // Of output held in memory.
constexpr std::uint32_t kQuantizationVersion =
    2;  // Of the block layouts; 2 is what all files have.

/// A count of the model's architecture: the first layer's where the file has one per layer.
std::uint32_t count_or(const GgufFile& file, std::string_view ending, std::uint32_t fallback) {
  const auto architecture = file.get_str(gguf::keys::kArchitecture);
  if (!architecture.ok()) return fallback;
  const std::string key = gguf::arch_key(*architecture, ending);
  if (const auto one = file.get_u32(key); one.ok()) return *one;
  if (const auto many = file.get_u32_array(key); many.ok() && !many->empty()) return many->front();
  return fallback;
}

MixModel mix_model(const GgufFile& file) {
  const std::uint32_t n_heads = count_or(file, gguf::arch::kNHeads, 1);
  return {.n_layers = count_or(file, gguf::arch::kNLayers, 0),
          .n_heads = n_heads,
          .n_kv_heads = count_or(file, gguf::arch::kNKvHeads, n_heads),
          .n_experts = count_or(file, gguf::arch::kNExperts, 0),
          .tied = file.find("output.weight") == nullptr};
}

void copy_metadata(const GgufFile& file, const QuantizeMix& mix, gguf::GgufWriter& writer) {
  for (const auto& [key, value] : file.metadata()) {
    if (!gguf::is_about_file(key)) writer.add(key, value);
  }
  writer.add(gguf::keys::kFileType, gguf::Value(mix.file_type));
  writer.add(gguf::keys::kQuantizationVersion, gguf::Value(kQuantizationVersion));
}

/// Converts rows [first_row, first_row + n_rows) of a tensor on all threads.
Result<void> convert_rows(const GgufFile& file, const TensorPlan& plan, std::uint64_t first_row,
                          std::size_t n_rows, sys::ThreadPool& pool, std::span<std::byte> out) {
  const TensorInfo& tensor = *plan.tensor;
  const std::size_t n = tensor.shape[0];
  const std::size_t in_bytes = quant::row_bytes(tensor.type, n);
  const std::size_t out_bytes = quant::row_bytes(plan.type, n);
  constexpr std::uint64_t kNone = ~std::uint64_t{0};
  std::atomic<std::uint64_t> bad_element = kNone;  // The first one: row * n + column.
  pool.run([&](std::size_t thread, std::size_t n_threads) {
    const sys::Partition mine = sys::partition(n_rows, thread, n_threads);
    std::vector<float> row(n);
    for (std::size_t i = mine.begin; i < mine.end; ++i) {
      quant::dequantize_row(tensor.type, tensor.data.data() + (first_row + i) * in_bytes, n,
                            row.data());
      const std::size_t column = quant::first_not_finite(row);
      if (column < n) {
        const std::uint64_t element = (first_row + i) * n + column;
        std::uint64_t seen = bad_element.load();
        while (element < seen && !bad_element.compare_exchange_weak(seen, element)) {
        }
        return;
      }
      quant::quantize_row(plan.type, row.data(), n, out.data() + i * out_bytes);
    }
  });
  const std::uint64_t bad = bad_element.load();
  if (bad == kNone) return ok();
  return Error{
      ErrorCode::kCorrupt,
      fmt::format("{}: tensor {} has a weight that is NaN or infinite (row {}, column {}); every "
                  "weight must be a finite number",
                  file.shard_name(tensor.shard), gguf::quoted(tensor.name), bad / n, bad % n)};
}

}  // namespace

std::vector<TensorPlan> plan_types(const GgufFile& file, const QuantizeMix& mix, bool pure) {
  const MixModel model = mix_model(file);
  std::vector<TensorPlan> out;
  for (const TensorInfo& tensor : file.tensors()) {
    MixTensor input{.name = tensor.name, .n_dims = tensor.n_dims, .row = tensor.shape[0]};
    TensorPlan plan{.tensor = &tensor, .type = tensor.type};
    if (mix_applies(input)) {
      plan.type = mixed_type(mix, model, input, pure);
      input.row = 256;  // Fits every type: what the mix would have liked.
      plan.fell_back = plan.type != mixed_type(mix, model, input, pure);
    }
    out.push_back(plan);
  }
  return out;
}

Result<void> quantize_model(const GgufFile& file, std::span<const TensorPlan> plan,
                            const QuantizeMix& mix, const std::filesystem::path& path,
                            std::size_t n_threads, const QuantizeProgress& progress) {
  gguf::GgufWriter writer;
  copy_metadata(file, mix, writer);
  std::uint64_t total = 0;
  for (const TensorPlan& item : plan) {
    const TensorInfo& tensor = *item.tensor;
    writer.add_tensor(tensor.name, item.type, std::span(tensor.shape).first(tensor.n_dims));
    total += tensor.n_bytes;
  }
  RECUA_RETURN_IF_ERROR(writer.begin(path));

  sys::ThreadPool pool(n_threads);
  std::vector<std::byte> buffer;
  std::uint64_t done = 0;
  for (const TensorPlan& item : plan) {
    const TensorInfo& tensor = *item.tensor;
    const std::uint64_t in_bytes = quant::row_bytes(tensor.type, tensor.shape[0]);
    const std::uint64_t out_bytes = quant::row_bytes(item.type, tensor.shape[0]);
    const std::uint64_t rows_max = std::max<std::uint64_t>(1, kChunkBytes / out_bytes);
    for (std::uint64_t row = 0; row < tensor.n_rows(); row += rows_max) {
      if (progress) progress(done, total, tensor.name);
      const auto n_rows = static_cast<std::size_t>(std::min(rows_max, tensor.n_rows() - row));
      if (item.type == tensor.type) {
        RECUA_RETURN_IF_ERROR(writer.write(tensor.data.subspan(row * in_bytes, n_rows * in_bytes)));
      } else {
        buffer.resize(n_rows * out_bytes);
        RECUA_RETURN_IF_ERROR(convert_rows(file, item, row, n_rows, pool, buffer));
        RECUA_RETURN_IF_ERROR(writer.write(buffer));
      }
      done += n_rows * in_bytes;
    }
  }
  if (progress) progress(total, total, "to the disk");
  return writer.finish();
}

}  // namespace recua::cli
