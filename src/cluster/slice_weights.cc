#include "cluster/slice_weights.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/log.h"
#include "sys/aligned_buffer.h"

namespace recua::cluster {
namespace {

constexpr std::uint64_t kRowsMax = std::uint64_t{1} << 40;

/// Tensors by name, as SliceRunner asks for them.
class LoadedWeights final : public model::WeightSource {
 public:
  void add(compute::TensorBytes tensor) {
    std::string name = tensor.name;
    tensors_.insert_or_assign(std::move(name), std::move(tensor));
  }
  [[nodiscard]] bool has(std::string_view name) const override { return tensors_.contains(name); }
  [[nodiscard]] Result<compute::TensorBytes> tensor(std::string_view name) const override {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return Error{
          ErrorCode::kNotFound,
          fmt::format("tensor {} is not among those that the coordinator announced", name)};
    }
    return found->second;
  }

 private:
  std::map<std::string, compute::TensorBytes, std::less<>> tensors_;
};

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

Result<std::unique_ptr<SliceWeights>> SliceWeights::begin(std::vector<TensorSpec> tensors,
                                                          const std::filesystem::path& models_dir,
                                                          const ChunkHasher& hasher,
                                                          ChunkStore store,
                                                          const HashProgress& progress) {
  auto weights = std::unique_ptr<SliceWeights>(new SliceWeights(std::move(store)));
  std::map<std::string, std::vector<std::uint32_t>> by_file;
  for (TensorSpec& spec : tensors) {
    RECUA_RETURN_IF_ERROR(check_spec(spec));
    by_file[spec.file].push_back(static_cast<std::uint32_t>(weights->tensors_.size()));
    weights->tensors_.push_back({.spec = std::move(spec)});
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
    std::vector<std::uint32_t> hashed;
    for (const std::uint32_t index : indices) {
      const TensorSpec& spec = weights->tensors_[index].spec;
      if (file != nullptr && spec.offset + spec.bytes <= file->bytes().size()) {
        ranges.push_back({spec.offset, spec.bytes});
        hashed.push_back(index);
      }
    }
    std::vector<std::vector<Digest>> local;
    if (file != nullptr) local = hasher.hash(file->path(), file->bytes(), ranges, progress);
    if (hasher.cancelled()) return Error{ErrorCode::kCancelled, "loading was given up"};
    const std::vector<Digest> none;
    bool differs = file != nullptr && hashed.size() != indices.size();
    for (const std::uint32_t index : indices) {
      const auto at = std::find(hashed.begin(), hashed.end(), index);
      const std::vector<Digest>& digests =
          at == hashed.end() ? none : local[static_cast<std::size_t>(at - hashed.begin())];
      differs = differs || (!digests.empty() && digests != weights->tensors_[index].spec.chunks);
      RECUA_RETURN_IF_ERROR(weights->place(index, file, digests));
    }
    if (differs) {
      log_warning(
          "{}: differs from the coordinator's file of that name; the parts that differ come "
          "from the cache or the coordinator",
          (models_dir / name).string());
    }
  }
  return weights;
}

Result<void> SliceWeights::place(std::uint32_t index, const std::shared_ptr<const MappedFile>& file,
                                 const std::vector<Digest>& local) {
  Tensor& tensor = tensors_[index];
  const TensorSpec& spec = tensor.spec;
  if (!local.empty() && local == spec.chunks) {
    tensor.bytes = file->bytes().subspan(spec.offset, spec.bytes);
    tensor.owner = file;
    counts_.from_file += spec.bytes;
    return ok();
  }
  // Some of it must come from elsewhere: assemble the tensor in memory.
  RECUA_ASSIGN_OR_RETURN(sys::AlignedBuffer allocated, sys::AlignedBuffer::allocate(spec.bytes));
  auto buffer = std::make_shared<const sys::AlignedBuffer>(std::move(allocated));
  tensor.writable = buffer->bytes();
  tensor.bytes = tensor.writable;
  tensor.owner = buffer;
  for (std::uint32_t i = 0; i < spec.chunks.size(); ++i) {
    const std::uint64_t size = chunk_size(spec.bytes, i);
    const std::span<std::byte> out = tensor.writable.subspan(i * kChunkBytes, size);
    if (i < local.size() && local[i] == spec.chunks[i]) {
      std::memcpy(out.data(), file->bytes().data() + spec.offset + i * kChunkBytes, size);
      counts_.from_file += size;
    } else if (store_.load(spec.chunks[i], out)) {
      counts_.from_cache += size;
    } else {
      missing_.push_back({index, i});
    }
  }
  return ok();
}

Result<void> SliceWeights::supply(const ChunkRef& ref, std::span<const std::byte> bytes) {
  Tensor& tensor = tensors_[ref.tensor];
  const std::uint64_t size = chunk_size(tensor.spec.bytes, ref.chunk);
  // The copy is checked, not the original: a sender may still write into a slot that it gave us.
  const std::span<std::byte> stored =
      tensor.writable.subspan(ref.chunk * kChunkBytes, static_cast<std::size_t>(size));
  const bool fits = bytes.size() == size;
  if (fits) std::memcpy(stored.data(), bytes.data(), size);
  if (!fits || sha256(stored) != tensor.spec.chunks[ref.chunk]) {
    return Error{ErrorCode::kCorrupt,
                 fmt::format("chunk {} of tensor {} does not have the announced hash; did the "
                             "coordinator's file change while it was in use?",
                             ref.chunk, tensor.spec.name)};
  }
  counts_.fetched += size;
  if (const auto saved = store_.save(tensor.spec.chunks[ref.chunk], stored); !saved.ok()) {
    log_warning("a fetched chunk was not cached: {}", saved.error().message);
  }
  return ok();
}

std::unique_ptr<model::WeightSource> SliceWeights::finish() && {
  auto source = std::make_unique<LoadedWeights>();
  for (Tensor& tensor : tensors_) {
    source->add({.name = tensor.spec.name,
                 .type = tensor.spec.type,
                 .n_in = tensor.spec.n_in,
                 .n_out = tensor.spec.n_out,
                 .n_experts = tensor.spec.n_experts,
                 .bytes = tensor.bytes,
                 .owner = tensor.owner});
  }
  return source;
}

}  // namespace recua::cluster
