#pragma once
/// A GGUF model file, version 2 or 3, little endian, in one piece or split, read where it lies.
///
/// Nothing in the file is believed: every count, length, offset and size is bounded against the
/// file and against overflow before it is used, and nothing is allocated beyond what the file's own
/// bytes can fill. An error names the file, the field, its byte offset, the value and what would be
/// right.
///   kNotFound, kIo: the file or one of its shards.  kCorrupt: breaks the format.
///   kUnsupported: big endian, version 1, a tensor type that we do not know.
///
/// Rules beyond the specification: no two tensors share bytes, no tensor is empty, alignment is a
/// power of two from 8 to kAlignmentMax, no arrays of arrays. A file without tensors is fine (a
/// vocabulary). A split model is opened through any of its shards; metadata comes from the first.
///
/// Threads: immutable once opened; any thread may read. Metadata and tensor spans live as long as
/// the GgufFile (moving it keeps them valid). Source: the GGUF specification; docs/gguf.md.

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "gguf/keys.h"
#include "gguf/value.h"
#include "quant/data_type.h"

namespace recua::gguf {

inline constexpr std::size_t kDimsMax = 4;
inline constexpr std::uint64_t kAlignmentDefault = 32;
inline constexpr std::uint64_t kAlignmentMax = std::uint64_t{1} << 24;
inline constexpr std::uint64_t kKeyBytesMax = 65535;       // By the specification.
inline constexpr std::uint64_t kTensorNameBytesMax = 255;  // The specification says 64.

struct TensorInfo {
  std::string_view name;
  quant::DataType type = quant::DataType::kF32;
  /// As the file lists them, fastest first: a weight matrix [n_out, n_in] of the papers has
  /// shape[0] = n_in (one row, contiguous) and shape[1] = n_out. Unused ones are 1.
  std::array<std::uint64_t, kDimsMax> shape = {1, 1, 1, 1};
  std::size_t n_dims = 0;
  std::uint64_t n_elements = 0;
  std::uint64_t n_bytes = 0;
  std::uint64_t offset = 0;  // Of its first byte in its shard's file.
  std::size_t shard = 0;     // Index of the file that holds it.
  std::span<const std::byte>
      data;  // n_bytes, aligned to the file's alignment if the file is mapped.

  [[nodiscard]] std::uint64_t n_rows() const { return n_elements / shape[0]; }
  /// "[2048, 8192]", fastest first.
  [[nodiscard]] std::string shape_text() const;
};

class GgufFile {
 public:
  /// Maps and checks a model. path may be any shard of a split one ("...-00002-of-00003.gguf").
  static Result<GgufFile> open(const std::filesystem::path& path);

  /// Checks a model in memory; bytes must outlive the GgufFile. name stands for the path in
  /// messages. A model that says it is split is refused: its other parts are not here.
  static Result<GgufFile> parse(std::span<const std::byte> bytes, std::string name);

  /// parse() of bytes that the GgufFile keeps.
  static Result<GgufFile> parse_owned(std::vector<std::byte> bytes, std::string name);

  /// Takes the tensors of another file along as if it were one more shard, whose metadata nobody
  /// asks for. kCorrupt: both have a tensor of the same name. The file is then of no use.
  Result<void> append(GgufFile&& other);

  /// The path of the first shard, or the name given to parse().
  [[nodiscard]] const std::string& name() const { return shards_.front().name; }
  [[nodiscard]] std::uint32_t version() const { return version_; }
  [[nodiscard]] std::uint64_t alignment() const { return alignment_; }

  /// Whether the bytes of a shard's tensors are those of a mapped file (else of memory).
  [[nodiscard]] bool is_mapped(std::size_t shard) const {
    return shards_.at(shard).file.has_value();
  }

  [[nodiscard]] std::size_t n_shards() const { return shards_.size(); }
  [[nodiscard]] const std::string& shard_name(std::size_t i) const { return shards_.at(i).name; }
  [[nodiscard]] std::span<const std::byte> shard_bytes(std::size_t i) const {
    return shards_.at(i).bytes;
  }
  /// Where the tensor data of a shard begins; what comes before is its header.
  [[nodiscard]] std::uint64_t data_offset(std::size_t i) const { return shards_.at(i).data_offset; }

  /// In the order of the file, shard by shard.
  [[nodiscard]] std::span<const TensorInfo> tensors() const { return tensors_; }
  /// nullptr: no such tensor.
  [[nodiscard]] const TensorInfo* find(std::string_view tensor_name) const;
  /// kNotFound: names the file and the tensor.
  [[nodiscard]] Result<const TensorInfo*> tensor(std::string_view tensor_name) const;

  struct Entry {
    std::string_view key;
    Value value;
  };
  /// Metadata in the order of the (first) file.
  [[nodiscard]] std::span<const Entry> metadata() const { return metadata_; }
  /// nullptr: no such key.
  [[nodiscard]] const Value* value(std::string_view key) const;
  [[nodiscard]] bool has(std::string_view key) const { return value(key) != nullptr; }

  // get_x(): the value, or kNotFound (no such key), or kCorrupt (another type, or out of range; the
  // message says what was found). Integers of any width and sign are taken where their value fits.
  // find_x(): the same, but a missing key is an empty optional.
  [[nodiscard]] Result<std::uint32_t> get_u32(std::string_view key) const;
  [[nodiscard]] Result<std::uint64_t> get_u64(std::string_view key) const;
  [[nodiscard]] Result<float> get_f32(std::string_view key) const;  // From f32 or f64.
  [[nodiscard]] Result<bool> get_bool(std::string_view key) const;
  [[nodiscard]] Result<std::string_view> get_str(std::string_view key) const;
  [[nodiscard]] Result<std::optional<std::uint32_t>> find_u32(std::string_view key) const;
  [[nodiscard]] Result<std::optional<std::uint64_t>> find_u64(std::string_view key) const;
  [[nodiscard]] Result<std::optional<float>> find_f32(std::string_view key) const;
  [[nodiscard]] Result<std::optional<bool>> find_bool(std::string_view key) const;
  [[nodiscard]] Result<std::optional<std::string_view>> find_str(std::string_view key) const;

  /// Arrays, copied out; the strings themselves are borrowed. An error for one element names its
  /// index.
  [[nodiscard]] Result<std::vector<std::string_view>> get_str_array(std::string_view key) const;
  [[nodiscard]] Result<std::vector<float>> get_f32_array(std::string_view key) const;
  [[nodiscard]] Result<std::vector<std::int32_t>> get_i32_array(std::string_view key) const;
  [[nodiscard]] Result<std::vector<std::uint32_t>> get_u32_array(std::string_view key) const;
  [[nodiscard]] Result<std::vector<bool>> get_bool_array(std::string_view key) const;

 private:
  struct Shard {
    std::string name;
    std::optional<MappedFile> file;      // Empty for bytes in memory.
    std::vector<std::byte> memory = {};  // Empty for those of somebody else.
    std::span<const std::byte> bytes;
    std::uint64_t data_offset = 0;
  };

  GgufFile() = default;
  static Result<GgufFile> open_shard(const std::filesystem::path& path);
  static Result<GgufFile> parse_shard(Shard shard);
  Result<void> check_split(std::size_t index, std::size_t n_shards) const;
  Result<void> append_shard(GgufFile&& next);
  Result<void> index_tensors();
  Result<const Value*> require(std::string_view key) const;

  std::vector<Shard> shards_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = kAlignmentDefault;
  std::vector<Entry> metadata_;
  std::map<std::string_view, std::size_t> metadata_index_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string_view, std::size_t> tensor_index_;
};

/// The name of shard index (from 0) of n next to path, or nullopt when path's name does not end in
/// "-00001-of-00003.gguf" with any two numbers.
struct SplitName {
  std::string prefix;       // Up to and including the '-' before the index.
  std::uint32_t index = 0;  // From 0.
  std::uint32_t n_shards = 0;
  [[nodiscard]] std::filesystem::path shard_path(std::uint32_t shard) const;
};
std::optional<SplitName> parse_split_name(const std::filesystem::path& path);

}  // namespace recua::gguf
