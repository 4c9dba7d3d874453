#include "cluster/slice_weights.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cluster/plan.h"
#include "model/part_layout.h"
#include "sys/aligned_buffer.h"

namespace recua::cluster {
namespace {

constexpr std::uint64_t kRowsMax = std::uint64_t{1} << 40;

bool is_whole(const model::TensorPart& part) { return part.has_all_rows() && part.has_all_cols(); }

/// Tensors by name, as SliceRunner asks for them.
class LoadedWeights final : public model::WeightSource {
 public:
  /// tensor: its shape is that of the whole; its bytes are those of the part if is_cut.
  void add(compute::TensorBytes tensor, const model::TensorPart& part, bool is_cut) {
    std::string name = tensor.name;
    tensors_.insert_or_assign(std::move(name), Entry{std::move(tensor), part, is_cut});
  }
  [[nodiscard]] bool has(std::string_view name) const override { return tensors_.contains(name); }
  [[nodiscard]] Result<compute::TensorBytes> tensor(std::string_view name) const override {
    RECUA_ASSIGN_OR_RETURN(const Entry* entry, find(name));
    if (!entry->is_cut) return entry->tensor;
    return Error{ErrorCode::kUnsupported,
                 fmt::format("tensor {}: only this rank's part of it is here", name)};
  }
  [[nodiscard]] Result<std::size_t> n_rows(std::string_view name) const override {
    RECUA_ASSIGN_OR_RETURN(const Entry* entry, find(name));
    return entry->tensor.n_out;
  }
  [[nodiscard]] Result<quant::DataType> check(const model::TensorPart& part) const override {
    RECUA_ASSIGN_OR_RETURN(const Entry* entry, find(part.name));
    if (!entry->is_cut) return WeightSource::check(part);
    RECUA_RETURN_IF_ERROR(model::check_shape(entry->tensor, part.n_in, part.n_out, part.n_experts));
    return entry->tensor.type;
  }
  [[nodiscard]] Result<compute::TensorBytes> part(const model::TensorPart& part) const override {
    RECUA_ASSIGN_OR_RETURN(const Entry* entry, find(part.name));
    if (!entry->is_cut) return WeightSource::part(part);
    if (const auto checked = check(part); !checked.ok()) return Error(checked.error());
    const model::TensorPart& own = entry->part;
    if (part != own) {
      return Error{
          ErrorCode::kUnsupported,
          fmt::format("tensor {}: rows {}-{} and columns {}-{} are here, not rows {}-{} "
                      "and columns {}-{}",
                      part.name, own.rows.begin, own.rows.end, own.cols.begin, own.cols.end,
                      part.rows.begin, part.rows.end, part.cols.begin, part.cols.end)};
    }
    compute::TensorBytes out = entry->tensor;
    out.n_in = model::whole_blocks(own.cols, quant::traits(out.type).block_size).size();
    out.n_out = own.rows.size();
    return out;
  }

 private:
  struct Entry {
    compute::TensorBytes tensor;
    model::TensorPart part;
    bool is_cut = false;
  };
  [[nodiscard]] Result<const Entry*> find(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return Error{
          ErrorCode::kNotFound,
          fmt::format("tensor {} is not among those that the coordinator announced", name)};
    }
    return &found->second;
  }

  std::map<std::string, Entry, std::less<>> tensors_;
};

/// Neighbours of these chunks are hashed as one range.
std::vector<FileRange> ranges_of(const TensorSpec& spec, std::span<const std::uint32_t> chunks) {
  std::vector<FileRange> out;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const std::uint64_t bytes = chunk_size(spec.bytes, chunks[i]);
    if (i > 0 && chunks[i] == chunks[i - 1] + 1) {
      out.back().bytes += bytes;
    } else {
      out.push_back({spec.offset + chunks[i] * kChunkBytes, bytes});
    }
  }
  return out;
}

Error bad_spec(const TensorSpec& spec, std::string_view what) {
  return Error{ErrorCode::kProtocol, fmt::format("tensor {}: {}", spec.name, what)};
}

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name.size() <= 255 &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace

Result<void> check_spec(const TensorSpec& spec) {
  if (spec.name.empty() || spec.name.size() > 255) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("a tensor's name has {} bytes, must have 1 to 255", spec.name.size())};
  }
  if (!is_plain_file_name(spec.file))
    return bad_spec(spec, "its file must be a name without folders");
  const quant::DataTypeTraits t = quant::traits(spec.type);
  if (spec.n_in == 0 || spec.n_in > kRowsMax || spec.n_in % t.block_size != 0) {
    return bad_spec(spec, fmt::format("rows of {} elements do not fit type {}", spec.n_in, t.name));
  }
  const auto rows = checked_mul(spec.n_out, spec.n_experts);
  const auto bytes = rows
                         ? checked_mul<std::uint64_t>(*rows, quant::row_bytes(spec.type, spec.n_in))
                         : std::nullopt;
  if (!bytes || *bytes != spec.bytes || *bytes == 0) {
    return bad_spec(spec, fmt::format("{} bytes do not fit its shape", spec.bytes));
  }
  if (!checked_add(spec.offset, spec.bytes)) return bad_spec(spec, "its offset is out of range");
  if (spec.chunks.size() != n_chunks(spec.bytes)) {
    return bad_spec(spec, fmt::format("{} chunk hashes for {} bytes, need {}", spec.chunks.size(),
                                      spec.bytes, n_chunks(spec.bytes)));
  }
  return ok();
}

std::string to_string(const FileDifference& difference) {
  return fmt::format(
      "{} is not the coordinator's file of that name: {} of what this slice needs differ or are "
      "missing, first in tensor {}",
      difference.file, format_bytes(difference.bytes), difference.tensor);
}

model::TensorPart whole_part(const TensorSpec& spec) {
  return {.name = spec.name,
          .n_in = spec.n_in,
          .n_out = spec.n_out,
          .n_experts = spec.n_experts,
          .rows = {0, static_cast<std::uint32_t>(spec.n_out)},
          .cols = {0, static_cast<std::uint32_t>(spec.n_in)}};
}

std::vector<std::uint32_t> needed_chunks(const TensorSpec& spec, const model::TensorPart& part) {
  const model::PartLayout layout(part, spec.type);
  std::vector<std::uint32_t> out;
  for (std::uint32_t i = 0; i < spec.chunks.size(); ++i) {
    const std::uint64_t begin = i * kChunkBytes;
    if (layout.touches(begin, begin + chunk_size(spec.bytes, i))) out.push_back(i);
  }
  return out;
}

std::uint64_t needed_bytes(const TensorSpec& spec, const model::TensorPart& part) {
  std::uint64_t out = 0;
  for (const std::uint32_t chunk : needed_chunks(spec, part)) out += chunk_size(spec.bytes, chunk);
  return out;
}

Result<std::unique_ptr<SliceWeights>> SliceWeights::begin(std::vector<TensorSpec> tensors,
                                                          const std::filesystem::path& models_dir,
                                                          const ChunkHasher& hasher,
                                                          ChunkStore store,
                                                          const HashProgress& progress,
                                                          const PartOf& part_of) {
  auto weights = std::unique_ptr<SliceWeights>(new SliceWeights(std::move(store)));
  std::map<std::string, std::vector<std::uint32_t>> by_file;
  for (TensorSpec& spec : tensors) {
    RECUA_RETURN_IF_ERROR(check_spec(spec));
    by_file[spec.file].push_back(static_cast<std::uint32_t>(weights->tensors_.size()));
    model::TensorPart part = part_of(spec);
    std::vector<std::uint32_t> needed = needed_chunks(spec, part);
    weights->tensors_.push_back(
        {.spec = std::move(spec), .part = std::move(part), .needed = std::move(needed)});
  }

  for (const auto& [name, indices] : by_file) {
    std::shared_ptr<const MappedFile> file;
    if (!models_dir.empty()) {
      if (auto opened = MappedFile::open(models_dir / name); opened.ok()) {
        file = std::make_shared<const MappedFile>(std::move(*opened));
      } else if (opened.error().code != ErrorCode::kNotFound) {
        log_warning("{}; fetching its tensors instead", opened.error().message);
      }
    }
    // Only tensors that end within our copy can be in it.
    std::vector<FileRange> ranges;
    std::map<std::uint32_t, std::size_t> first_ranges;  // By tensor.
    for (const std::uint32_t index : indices) {
      const Tensor& tensor = weights->tensors_[index];
      if (file == nullptr || tensor.spec.offset + tensor.spec.bytes > file->bytes().size())
        continue;
      first_ranges[index] = ranges.size();
      const std::vector<FileRange> own = ranges_of(tensor.spec, tensor.needed);
      ranges.insert(ranges.end(), own.begin(), own.end());
    }
    std::vector<std::vector<Digest>> hashed;
    if (file != nullptr) hashed = hasher.hash(file->path(), file->bytes(), ranges, progress);
    if (hasher.cancelled()) return Error{ErrorCode::kCancelled, "loading was given up"};
    FileDifference difference{.file = (models_dir / name).string()};
    for (const std::uint32_t index : indices) {
      const std::size_t n_needed = weights->tensors_[index].needed.size();
      std::vector<Digest> local;
      if (const auto first = first_ranges.find(index); first != first_ranges.end()) {
        for (std::size_t i = first->second; local.size() < n_needed; ++i) {
          local.insert(local.end(), hashed[i].begin(), hashed[i].end());
        }
      }
      const Tensor& tensor = weights->tensors_[index];
      for (std::size_t i = 0; i < n_needed; ++i) {
        if (i < local.size() && local[i] == tensor.spec.chunks[tensor.needed[i]]) continue;
        if (difference.bytes == 0) difference.tensor = tensor.spec.name;
        difference.bytes += chunk_size(tensor.spec.bytes, tensor.needed[i]);
      }
      RECUA_RETURN_IF_ERROR(weights->place(index, file, local));
    }
    if (file == nullptr || difference.bytes == 0) continue;
    log_warning("{}; the parts that differ come from the cache or the coordinator",
                to_string(difference));
    weights->differences_.push_back(std::move(difference));
  }
  return weights;
}

Result<void> SliceWeights::place(std::uint32_t index, const std::shared_ptr<const MappedFile>& file,
                                 std::span<const Digest> local) {
  Tensor& tensor = tensors_[index];
  const TensorSpec& spec = tensor.spec;
  const auto is_here = [&](std::size_t i) {
    return i < local.size() && local[i] == spec.chunks[tensor.needed[i]];
  };
  std::size_t n_here = 0;
  while (is_here(n_here)) ++n_here;
  if (n_here == tensor.needed.size() && n_here > 0) {
    tensor.bytes = file->bytes().subspan(spec.offset, spec.bytes);
    tensor.owner = file;
    counts_.from_file += needed_bytes(spec, tensor.part);
    return ok();
  }
  // Some of it must come from elsewhere: assemble the part in memory.
  RECUA_ASSIGN_OR_RETURN(
      sys::AlignedBuffer allocated,
      sys::AlignedBuffer::allocate(model::PartLayout(tensor.part, spec.type).bytes()));
  auto buffer = std::make_shared<const sys::AlignedBuffer>(std::move(allocated));
  tensor.writable = buffer->bytes();
  tensor.bytes = tensor.writable;
  tensor.owner = buffer;
  for (std::size_t i = 0; i < tensor.needed.size(); ++i) {
    const std::uint32_t chunk = tensor.needed[i];
    const std::uint64_t size = chunk_size(spec.bytes, chunk);
    if (is_here(i)) {
      keep(tensor, chunk, file->bytes().subspan(spec.offset + chunk * kChunkBytes, size));
      counts_.from_file += size;
      continue;
    }
    const std::span<std::byte> room = room_for(tensor, chunk);
    if (store_.load(spec.chunks[chunk], room)) {
      keep(tensor, chunk, room);
      counts_.from_cache += size;
    } else {
      missing_.push_back({index, chunk});
    }
  }
  return ok();
}

std::span<std::byte> SliceWeights::room_for(const Tensor& tensor, std::uint32_t chunk) {
  const auto size = static_cast<std::size_t>(chunk_size(tensor.spec.bytes, chunk));
  if (is_whole(tensor.part)) return tensor.writable.subspan(chunk * kChunkBytes, size);
  if (scratch_.size() < size) scratch_.resize(size);
  return std::span(scratch_).first(size);
}

void SliceWeights::keep(const Tensor& tensor, std::uint32_t chunk,
                        std::span<const std::byte> bytes) {
  const std::size_t begin = chunk * kChunkBytes;
  model::PartLayout(tensor.part, tensor.spec.type)
      .for_each_piece(begin, begin + bytes.size(),
                      [&](std::size_t in_whole, std::size_t in_part, std::size_t n) {
                        const std::byte* from = bytes.subspan(in_whole - begin, n).data();
                        std::byte* to = tensor.writable.subspan(in_part, n).data();
                        if (to != from) std::memcpy(to, from, n);  // A whole tensor is there.
                      });
}

Result<void> SliceWeights::supply(const ChunkRef& ref, std::span<const std::byte> bytes) {
  Tensor& tensor = tensors_[ref.tensor];
  const std::uint64_t size = chunk_size(tensor.spec.bytes, ref.chunk);
  // The copy is checked, not the original: a sender may still write into a slot that it gave us.
  const std::span<std::byte> stored = room_for(tensor, ref.chunk);
  const bool fits = bytes.size() == size;
  if (fits) std::memcpy(stored.data(), bytes.data(), size);
  if (!fits || sha256(stored) != tensor.spec.chunks[ref.chunk]) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("chunk {} of tensor {} of {} does not have the announced hash; did "
                             "the coordinator's file change while it was in use?",
                             ref.chunk, tensor.spec.name, tensor.spec.file)};
  }
  keep(tensor, ref.chunk, stored);
  counts_.fetched += size;
  if (const auto saved = store_.save(tensor.spec.chunks[ref.chunk], stored); !saved.ok()) {
    log_warning("a fetched chunk was not cached: {}", saved.error().message);
  }
  return ok();
}

std::unique_ptr<model::WeightSource> SliceWeights::finish() && {
  auto source = std::make_unique<LoadedWeights>();
  for (Tensor& tensor : tensors_) {
    const bool is_cut = !tensor.writable.empty() && !is_whole(tensor.part);
    source->add({.name = tensor.spec.name,
                 .type = tensor.spec.type,
                 .n_in = tensor.spec.n_in,
                 .n_out = tensor.spec.n_out,
                 .n_experts = tensor.spec.n_experts,
                 .bytes = tensor.bytes,
                 .owner = tensor.owner,
                 .in_mapped_file = tensor.writable.empty()},
                tensor.part, is_cut);
  }
  return source;
}

}  // namespace recua::cluster
