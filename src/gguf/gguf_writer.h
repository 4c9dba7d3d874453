#pragma once
/// Writes GGUF version 3: metadata and tensor infos first, then the tensors' bytes as a stream.
///
///   GgufWriter writer;
///   writer.add("general.architecture", "llama");
///   writer.add_tensor("token_embd.weight", DataType::kF16, {64, 512});   // all of them, in order
///   RECUA_RETURN_IF_ERROR(writer.begin(path));                          // header goes out
///   RECUA_RETURN_IF_ERROR(writer.write(bytes));                         // any pieces, in order
///   RECUA_RETURN_IF_ERROR(writer.finish());                             // flush, fsync, rename
///
/// The file grows as "<path>.tmp-<pid>" and takes its name only in finish(); a writer that is
/// destroyed before removes it. Memory: the header and nothing else. Wrong use (a key twice, more
/// bytes than the tensors have) is a bug in the caller and a CHECK. Threads: one.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "gguf/gguf_file.h"
#include "gguf/value.h"

namespace recua::gguf {

class GgufWriter {
 public:
  /// alignment: a power of two from 8 to kAlignmentMax. Other than 32, it is written as metadata.
  explicit GgufWriter(std::uint64_t alignment = kAlignmentDefault);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  /// One metadata entry. The value's type is the type in the file; strings and arrays are copied.
  void add(std::string_view key, const Value& value);
  void add(std::string_view key, const char* text) { add(key, Value(std::string_view(text))); }
  void add(std::string_view key, std::span<const std::string_view> texts);
  void add(std::string_view key, std::span<const float> numbers);
  void add(std::string_view key, std::span<const std::int32_t> numbers);
  [[nodiscard]] bool has(std::string_view key) const { return keys_.contains(std::string(key)); }

  /// shape: fastest first, 1 to 4 dims of at least 1, shape[0] a multiple of the type's block size.
  void add_tensor(std::string_view name, quant::DataType type,
                  std::span<const std::uint64_t> shape);

  /// The file up to its tensor data, padding included.
  [[nodiscard]] std::vector<std::byte> header() const;
  /// Size of the whole file.
  [[nodiscard]] std::uint64_t file_bytes() const;

  /// kIo: cannot create or write, with the path and the system's reason.
  Result<void> begin(const std::filesystem::path& path);
  /// The next bytes of the tensors, one after the other without gaps: the writer puts the padding.
  Result<void> write(std::span<const std::byte> bytes);
  /// Every byte of every tensor must have been written (a CHECK).
  Result<void> finish();

 private:
  struct Tensor {
    std::string name;
    quant::DataType type;
    std::vector<std::uint64_t> shape;
    std::uint64_t n_bytes = 0;
    std::uint64_t offset = 0;  // From the begin of the tensor data.
  };

  ByteWriter& begin_entry(std::string_view key, ValueType type);
  Result<void> put(std::span<const std::byte> bytes);
  [[nodiscard]] Error system_error(std::string_view what) const;

  std::uint64_t alignment_;
  std::set<std::string> keys_;
  std::set<std::string> tensor_names_;
  ByteWriter metadata_;
  std::vector<Tensor> tensors_;
  std::uint64_t data_bytes_ = 0;  // Of all tensors, padding included.

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  std::size_t current_ = 0;          // The tensor that the next byte belongs to.
  std::uint64_t current_bytes_ = 0;  // How much of it has been written.
};

}  // namespace recua::gguf
