#include "gguf/gguf_file.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "base/bytes.h"
#include "gguf/header_parser.h"

namespace recua::gguf {

std::string TensorInfo::shape_text() const {
  std::string out = "[";
  for (std::size_t i = 0; i < n_dims; ++i) out += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  return out + "]";
}

std::filesystem::path SplitName::shard_path(std::uint32_t shard) const {
  return fmt::format("{}{:05}-of-{:05}.gguf", prefix, shard + 1, n_shards);
}

std::optional<SplitName> parse_split_name(const std::filesystem::path& path) {
  // "...-00001-of-00003.gguf": the tail has a fixed length of 5 + 4 + 5 + 5 characters.
  constexpr std::size_t kTail = 19;
  const std::string text = path.string();
  if (text.size() <= kTail || !text.ends_with(".gguf")) return std::nullopt;
  const std::string tail = text.substr(text.size() - kTail);
  if (text[text.size() - kTail - 1] != '-' || tail.substr(5, 4) != "-of-") return std::nullopt;
  const auto number = [&tail](std::size_t at) -> std::optional<std::uint32_t> {
    std::uint32_t value = 0;
    const char* end = tail.data() + at + 5;
    const auto [stop, error] = std::from_chars(tail.data() + at, end, value);
    if (error != std::errc{} || stop != end) return std::nullopt;
    return value;
  };
  const auto index = number(0);
  const auto n = number(9);
  if (!index || !n || *index < 1 || *index > *n) return std::nullopt;
  return SplitName{
      .prefix = text.substr(0, text.size() - kTail), .index = *index - 1, .n_shards = *n};
}

Result<GgufFile> GgufFile::parse_shard(Shard shard) {
  RECUA_ASSIGN_OR_RETURN(Header header, parse_header(shard.bytes, shard.name));
  GgufFile file;
  shard.data_offset = header.data_offset;
  file.shards_.push_back(std::move(shard));
  file.version_ = header.version;
  file.alignment_ = header.alignment;
  file.metadata_ = std::move(header.metadata);
  for (std::size_t i = 0; i < file.metadata_.size(); ++i) {
    file.metadata_index_.emplace(file.metadata_[i].key, i);
  }
  file.tensors_ = std::move(header.tensors);
  return file;
}

Result<GgufFile> GgufFile::open_shard(const std::filesystem::path& path) {
  RECUA_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(path));
  Shard shard{.name = path.string(), .file = std::nullopt, .memory = {}, .bytes = mapped.bytes()};
  shard.file = std::move(mapped);
  return parse_shard(std::move(shard));
}

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes, std::string name) {
  RECUA_ASSIGN_OR_RETURN(
      GgufFile file,
      parse_shard(
          Shard{.name = std::move(name), .file = std::nullopt, .memory = {}, .bytes = bytes}));
  RECUA_ASSIGN_OR_RETURN(const auto n_shards, file.find_u32(keys::kSplitCount));
  if (n_shards.value_or(1) > 1) {
    return Error{
        ErrorCode::kUnsupported,
        fmt::format("{}: the model is split into {} files, of which this is one; open it by the "
                    "name of a file",
                    file.name(), *n_shards)};
  }
  RECUA_RETURN_IF_ERROR(file.index_tensors());
  return file;
}

Result<GgufFile> GgufFile::parse_owned(std::vector<std::byte> bytes, std::string name) {
  RECUA_ASSIGN_OR_RETURN(GgufFile file, parse(bytes, std::move(name)));
  file.shards_.front().memory = std::move(bytes);  // Which stay where they are.
  return file;
}

Result<void> GgufFile::append(GgufFile&& other) {
  for (const TensorInfo& tensor : other.tensors_) {
    if (find(tensor.name) == nullptr) continue;
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: tensor {} is in {} already; each may occur once", other.name(),
                             quoted(tensor.name), name())};
  }
  for (TensorInfo tensor : other.tensors_) {
    tensor.shard += shards_.size();
    tensor_index_.emplace(tensor.name, tensors_.size());
    tensors_.push_back(tensor);
  }
  for (Shard& shard : other.shards_) shards_.push_back(std::move(shard));
  return ok();
}

Result<GgufFile> GgufFile::open(const std::filesystem::path& path) {
  RECUA_ASSIGN_OR_RETURN(GgufFile file, open_shard(path));
  RECUA_ASSIGN_OR_RETURN(const auto n_shards, file.find_u32(keys::kSplitCount));
  if (n_shards.value_or(1) > 1) {
    const std::optional<SplitName> split = parse_split_name(path);
    if (!split || split->n_shards != *n_shards) {
      return Error{
          ErrorCode::kCorrupt,
          fmt::format("{}: the file says it is one of {} parts of a model, so its name must end in "
                      "-00001-of-{:05}.gguf (with its own number) to find the others",
                      path.string(), *n_shards, *n_shards)};
    }
    if (split->index != 0) {
      RECUA_ASSIGN_OR_RETURN(file, open_shard(split->shard_path(0)));
    }
    RECUA_RETURN_IF_ERROR(file.check_split(0, *n_shards));
    for (std::uint32_t i = 1; i < *n_shards; ++i) {
      RECUA_ASSIGN_OR_RETURN(GgufFile next, open_shard(split->shard_path(i)));
      RECUA_RETURN_IF_ERROR(next.check_split(i, *n_shards));
      RECUA_RETURN_IF_ERROR(file.append_shard(std::move(next)));
    }
    RECUA_ASSIGN_OR_RETURN(const auto n_tensors, file.find_u64(keys::kSplitTensors));
    if (n_tensors && *n_tensors != file.tensors_.size()) {
      return Error{
          ErrorCode::kCorrupt,
          fmt::format("{}: {} says the model has {} tensors, but its {} files hold {}", file.name(),
                      keys::kSplitTensors, *n_tensors, *n_shards, file.tensors_.size())};
    }
  }
  RECUA_RETURN_IF_ERROR(file.index_tensors());
  return file;
}

Result<void> GgufFile::check_split(std::size_t index, std::size_t n_shards) const {
  RECUA_ASSIGN_OR_RETURN(const std::uint32_t own_index, get_u32(keys::kSplitIndex));
  RECUA_ASSIGN_OR_RETURN(const std::uint32_t own_n, get_u32(keys::kSplitCount));
  if (own_index == index && own_n == n_shards) return ok();
  return Error{ErrorCode::kCorrupt, fmt::format("{}: the file says it is part {} of {} (counting "
                                                "from 0), but by its name it is part {} of {}",
                                                name(), own_index, own_n, index, n_shards)};
}

Result<void> GgufFile::append_shard(GgufFile&& next) {
  for (TensorInfo tensor : next.tensors_) {
    tensor.shard = shards_.size();
    tensors_.push_back(tensor);
  }
  shards_.push_back(std::move(next.shards_.front()));
  return ok();
}

Result<void> GgufFile::index_tensors() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const auto [it, is_new] = tensor_index_.emplace(tensors_[i].name, i);
    if (is_new) continue;
    return Error{ErrorCode::kCorrupt,
                 fmt::format("{}: tensor {} is already in {}; each may occur once",
                             shards_[tensors_[i].shard].name, quoted(tensors_[i].name),
                             shards_[tensors_[it->second].shard].name)};
  }
  return ok();
}

const TensorInfo* GgufFile::find(std::string_view tensor_name) const {
  const auto it = tensor_index_.find(tensor_name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

Result<const TensorInfo*> GgufFile::tensor(std::string_view tensor_name) const {
  if (const TensorInfo* info = find(tensor_name)) return info;
  return Error{ErrorCode::kNotFound,
               fmt::format("{}: tensor {} is missing (the file has {} tensors)", name(),
                           quoted(tensor_name), tensors_.size())};
}

}  // namespace recua::gguf
