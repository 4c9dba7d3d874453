#include "gguf/gguf_writer.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/check.h"

namespace recua::gguf {
namespace {

void write_text(ByteWriter& out, std::string_view text) {
  out.write(static_cast<std::uint64_t>(text.size()));
  out.write_bytes(as_bytes(text));
}

}  // namespace

GgufWriter::GgufWriter(std::uint64_t alignment) : alignment_(alignment) {
  RECUA_CHECK(alignment >= 8 && alignment <= kAlignmentMax && (alignment & (alignment - 1)) == 0);
  if (alignment != kAlignmentDefault) {
    add(keys::kAlignment, Value(static_cast<std::uint32_t>(alignment)));
  }
}

GgufWriter::~GgufWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

ByteWriter& GgufWriter::begin_entry(std::string_view key, ValueType type) {
  RECUA_CHECK(fd_ < 0 && !key.empty() && key.size() <= kKeyBytesMax);
  RECUA_CHECK(keys_.insert(std::string(key)).second);
  write_text(metadata_, key);
  metadata_.write(static_cast<std::uint32_t>(type));
  return metadata_;
}

void GgufWriter::add(std::string_view key, const Value& value) {
  ByteWriter& out = begin_entry(key, type_of(value));
  std::visit(
      [&out](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>) {
          out.write(static_cast<std::uint8_t>(v ? 1 : 0));
        } else if constexpr (std::is_same_v<T, std::string_view>) {
          write_text(out, v);
        } else if constexpr (std::is_same_v<T, Array>) {
          out.write(static_cast<std::uint32_t>(v.element_type));
          out.write(v.n);
          out.write_bytes(v.bytes);
        } else {
          out.write(v);
        }
      },
      value);
}

void GgufWriter::add(std::string_view key, std::span<const std::string_view> texts) {
  ByteWriter encoded;
  for (const std::string_view text : texts) write_text(encoded, text);
  add(key, Value(Array{
               .element_type = ValueType::kString, .n = texts.size(), .bytes = encoded.bytes()}));
}

void GgufWriter::add(std::string_view key, std::span<const float> numbers) {
  add(key,
      Value(Array{
          .element_type = ValueType::kF32, .n = numbers.size(), .bytes = std::as_bytes(numbers)}));
}

void GgufWriter::add(std::string_view key, std::span<const std::int32_t> numbers) {
  add(key,
      Value(Array{
          .element_type = ValueType::kI32, .n = numbers.size(), .bytes = std::as_bytes(numbers)}));
}

void GgufWriter::add_tensor(std::string_view name, quant::DataType type,
                            std::span<const std::uint64_t> shape) {
  RECUA_CHECK(fd_ < 0 && !name.empty() && name.size() <= kTensorNameBytesMax);
  RECUA_CHECK(!shape.empty() && shape.size() <= kDimsMax);
  RECUA_CHECK(tensor_names_.insert(std::string(name)).second);
  const quant::DataTypeTraits t = quant::traits(type);
  RECUA_CHECK(shape[0] % t.block_size == 0);
  std::uint64_t n_elements = 1;
  for (const std::uint64_t dim : shape) {
    RECUA_CHECK(dim >= 1);
    n_elements *= dim;
  }
  const std::uint64_t n_bytes = n_elements / t.block_size * t.block_bytes;
  tensors_.push_back({.name = std::string(name),
                      .type = type,
                      .shape = {shape.begin(), shape.end()},
                      .n_bytes = n_bytes,
                      .offset = data_bytes_});
  data_bytes_ += align_up(n_bytes, alignment_);
}

std::vector<std::byte> GgufWriter::header() const {
  ByteWriter out;
  out.write_bytes(as_bytes("GGUF"));
  out.write(std::uint32_t{3});
  out.write(static_cast<std::uint64_t>(tensors_.size()));
  out.write(static_cast<std::uint64_t>(keys_.size()));
  out.write_bytes(metadata_.bytes());
  for (const Tensor& tensor : tensors_) {
    write_text(out, tensor.name);
    out.write(static_cast<std::uint32_t>(tensor.shape.size()));
    for (const std::uint64_t dim : tensor.shape) out.write(dim);
    out.write(static_cast<std::uint32_t>(tensor.type));
    out.write(tensor.offset);
  }
  out.pad_to(alignment_);
  return std::move(out).take();
}

std::uint64_t GgufWriter::file_bytes() const { return header().size() + data_bytes_; }

Error GgufWriter::system_error(std::string_view what) const {
  return Error{ErrorCode::kIo,
               fmt::format("{}: cannot {}: {}", temporary_.string(), what, std::strerror(errno))};
}

Result<void> GgufWriter::begin(const std::filesystem::path& path) {
  RECUA_CHECK(fd_ < 0);
  path_ = path;
  temporary_ = fmt::format("{}.tmp-{}", path.string(), ::getpid());
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) return system_error("create the file");
  return put(header());
}

Result<void> GgufWriter::put(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return system_error("write");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return ok();
}

Result<void> GgufWriter::write(std::span<const std::byte> bytes) {
  RECUA_CHECK(fd_ >= 0);
  while (!bytes.empty()) {
    RECUA_CHECK(current_ < tensors_.size());
    const Tensor& tensor = tensors_[current_];
    const std::size_t n = std::min<std::uint64_t>(bytes.size(), tensor.n_bytes - current_bytes_);
    RECUA_RETURN_IF_ERROR(put(bytes.first(n)));
    bytes = bytes.subspan(n);
    current_bytes_ += n;
    if (current_bytes_ == tensor.n_bytes) {
      const std::vector<std::byte> zeros(align_up(tensor.n_bytes, alignment_) - tensor.n_bytes);
      RECUA_RETURN_IF_ERROR(put(zeros));
      ++current_;
      current_bytes_ = 0;
    }
  }
  return ok();
}

Result<void> GgufWriter::finish() {
  RECUA_CHECK(fd_ >= 0 && current_ == tensors_.size());
  if (::fsync(fd_) != 0) return system_error("write to the disk");
  const int fd = fd_;
  fd_ = -1;  // From here on the destructor has nothing to do.
  if (::close(fd) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    Error error = system_error(fmt::format("become {}", path_.string()));
    ::unlink(temporary_.c_str());
    return error;
  }
  return ok();
}

}  // namespace recua::gguf
