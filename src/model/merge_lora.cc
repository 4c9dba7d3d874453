// Rows are independent: threads merge a chunk of rows, then it is written. Sums are in f64, B A
// added to W in the order of the ranks.
#include "model/merge_lora.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "gguf/gguf_writer.h"
#include "model/lora.h"
#include "quant/dequantize.h"
#include "sys/thread_pool.h"

namespace recua::model {
namespace {

using gguf::TensorInfo;

constexpr std::size_t kChunkFloats = std::size_t{8} << 20;

/// A matrix with its pair; the pair is in F32 and has the factor in B.
struct Adapted {
  const TensorInfo* matrix = nullptr;
  const TensorInfo* a = nullptr;  // [rank, n_in]; null: the matrix is not adapted.
  const TensorInfo* b = nullptr;  // [n_out, rank]
};

const float* numbers(const TensorInfo& tensor) {
  return reinterpret_cast<const float*>(tensor.data.data());
}

std::vector<Adapted> list_tensors(const gguf::GgufFile& model) {
  std::vector<Adapted> out;
  for (const TensorInfo& tensor : model.tensors()) {
    if (tensor.name.ends_with(kLoraA) || tensor.name.ends_with(kLoraB)) continue;
    const std::string name(tensor.name);
    out.push_back({.matrix = &tensor,
                   .a = model.find(name + std::string(kLoraA)),
                   .b = model.find(name + std::string(kLoraB))});
  }
  return out;
}

// Whether all numbers are finite.
bool merge_row(const Adapted& tensor, std::size_t row, std::span<double> sums,
               std::span<float> out) {
  const std::size_t n = tensor.matrix->shape[0];
  const std::size_t rank = tensor.a->shape[1];
  const std::size_t row_bytes = quant::row_bytes(tensor.matrix->type, n);
  quant::dequantize_row(tensor.matrix->type, tensor.matrix->data.data() + row * row_bytes, n,
                        out.data());
  std::ranges::copy(out, sums.begin());
  for (std::size_t r = 0; r < rank; ++r) {
    const auto factor = static_cast<double>(numbers(*tensor.b)[row * rank + r]);
    const float* const a = numbers(*tensor.a) + r * n;
    for (std::size_t i = 0; i < n; ++i) sums[i] += factor * static_cast<double>(a[i]);
  }
  bool finite = true;
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(sums[i]);
    finite = finite && std::isfinite(out[i]);
  }
  return finite;
}

Result<void> write_adapted(const gguf::GgufFile& model, const Adapted& tensor,
                           sys::ThreadPool& pool, std::vector<float>& chunk,
                           gguf::GgufWriter& writer) {
  const std::size_t n = tensor.matrix->shape[0];
  const std::size_t n_rows = tensor.matrix->n_rows();
  const std::size_t rows_max = std::max<std::size_t>(1, kChunkFloats / n);
  std::atomic<bool> finite = true;
  for (std::size_t begin = 0; begin < n_rows; begin += rows_max) {
    const std::size_t n_now = std::min(rows_max, n_rows - begin);
    chunk.resize(n_now * n);
    pool.run([&](std::size_t thread, std::size_t n_threads) {
      const sys::Partition mine = sys::partition(n_now, thread, n_threads);
      std::vector<double> sums(n);
      for (std::size_t r = mine.begin; r < mine.end; ++r) {
        if (!merge_row(tensor, begin + r, sums, std::span(chunk).subspan(r * n, n))) finite = false;
      }
    });
    if (!finite) {
      return Error{
          ErrorCode::kCorrupt,
          fmt::format("{}: tensor {} with the adapter has a weight that is NaN or "
                      "infinite; every weight must be a finite number",
                      model.shard_name(tensor.matrix->shard), gguf::quoted(tensor.matrix->name))};
    }
    RECUA_RETURN_IF_ERROR(writer.write(std::as_bytes(std::span(chunk))));
  }
  return ok();
}

}  // namespace

Result<MergeResult> write_merged(const gguf::GgufFile& model, const std::filesystem::path& path,
                                 std::size_t n_threads, const MergeProgress& progress) {
  const std::vector<Adapted> tensors = list_tensors(model);
  gguf::GgufWriter writer;
  for (const auto& [key, value] : model.metadata()) {
    if (!gguf::is_about_file(key)) writer.add(key, value);
  }
  if (const gguf::Value* version = model.value(gguf::keys::kQuantizationVersion)) {
    writer.add(gguf::keys::kQuantizationVersion, *version);
  }
  writer.add(gguf::keys::kFileType, gguf::Value(gguf::kFileTypeF32));  // Of most weights.
  MergeResult result;
  for (const Adapted& tensor : tensors) {
    const TensorInfo& info = *tensor.matrix;
    writer.add_tensor(info.name, tensor.a != nullptr ? quant::DataType::kF32 : info.type,
                      std::span(info.shape).first(info.n_dims));
    result.n_merged += tensor.a != nullptr ? 1 : 0;
  }
  result.n_bytes = writer.file_bytes();
  RECUA_RETURN_IF_ERROR(writer.begin(path));
  sys::ThreadPool pool(n_threads);
  std::vector<float> chunk;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (progress) progress(i, tensors.size());
    const Adapted& tensor = tensors[i];
    RECUA_RETURN_IF_ERROR(tensor.a != nullptr ? write_adapted(model, tensor, pool, chunk, writer)
                                              : writer.write(tensor.matrix->data));
  }
  if (progress) progress(tensors.size(), tensors.size());
  RECUA_RETURN_IF_ERROR(writer.finish());
  return result;
}

}  // namespace recua::model
