#include "gguf/header_parser.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/bytes.h"

namespace recua::gguf {
namespace {

// What the smallest entries of their kind take, to bound a count before anything is read.
constexpr std::uint64_t kEntryBytesMin = 8 + 1 + 4 + 1;  // Length, key, type, value.
constexpr std::uint64_t kTensorBytesMin =
    8 + 1 + 4 + 8 + 4 + 8;  // ..., n_dims, one dim, type, offset.

std::string supported_types() {
  std::string out;
  for (const quant::DataType type : quant::kAllDataTypes) {
    if (!out.empty()) out += ' ';
    out += quant::traits(type).name;
  }
  return out;
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& name)
      : bytes_(bytes), reader_(bytes), name_(name) {}

  Result<Header> parse() {
    RECUA_RETURN_IF_ERROR(parse_preamble());
    RECUA_ASSIGN_OR_RETURN(const std::uint64_t n_tensors, read<std::uint64_t>("the tensor count"));
    const std::size_t counts_at = reader_.position() - 8;
    RECUA_ASSIGN_OR_RETURN(const std::uint64_t n_entries,
                           read<std::uint64_t>("the metadata count"));
    RECUA_RETURN_IF_ERROR(check_count(n_tensors, kTensorBytesMin, counts_at, "tensor count"));
    RECUA_RETURN_IF_ERROR(check_count(n_entries, kEntryBytesMin, counts_at + 8, "metadata count"));

    for (std::uint64_t i = 0; i < n_entries; ++i) RECUA_RETURN_IF_ERROR(parse_entry(i));
    for (std::uint64_t i = 0; i < n_tensors; ++i) RECUA_RETURN_IF_ERROR(parse_tensor(i));
    RECUA_RETURN_IF_ERROR(place_tensors());
    return std::move(header_);
  }

 private:
  template <class... Args>
  [[nodiscard]] Error error(ErrorCode code, std::size_t offset, fmt::format_string<Args...> format,
                            Args&&... args) const {
    return Error{code, fmt::format("{}: byte {}: {}", name_, offset,
                                   fmt::format(format, std::forward<Args>(args)...))};
  }
  template <class... Args>
  [[nodiscard]] Error corrupt(std::size_t offset, fmt::format_string<Args...> format,
                              Args&&... args) const {
    return error(ErrorCode::kCorrupt, offset, format, std::forward<Args>(args)...);
  }
  [[nodiscard]] Error truncated(std::string_view field, std::uint64_t need) const {
    return corrupt(
        reader_.position(),
        "the file ends inside {}: it needs {} bytes, {} are left (is the file complete?)", field,
        need, reader_.remaining());
  }

  template <class T>
  Result<T> read(std::string_view field) {
    const std::optional<T> value = reader_.read<T>();
    if (!value) return truncated(field, sizeof(T));
    return *value;
  }

  Result<std::string_view> read_string(std::string_view field) {
    const std::size_t at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::uint64_t length,
                           read<std::uint64_t>(fmt::format("the length of {}", field)));
    const auto bytes = reader_.take(length);
    if (!bytes) {
      return corrupt(at, "{} says it is {} bytes long, but only {} are left in the file", field,
                     length, reader_.remaining());
    }
    return as_text(*bytes);
  }

  Result<void> check_count(std::uint64_t n, std::uint64_t bytes_each, std::size_t at,
                           std::string_view field) const {
    const std::uint64_t n_max = reader_.remaining() / bytes_each;
    if (n <= n_max) return ok();
    return corrupt(at, "the {} is {}, but the {} bytes left have room for at most {}", field, n,
                   reader_.remaining(), n_max);
  }

  Result<void> parse_preamble() {
    if (bytes_.empty())
      return Error{ErrorCode::kCorrupt, fmt::format("{}: the file is empty", name_)};
    const auto magic = reader_.take(4);
    if (!magic) return truncated("the magic 'GGUF'", 4);
    if (as_text(*magic) != "GGUF") {
      return corrupt(0, "the file begins with {}, not with 'GGUF': it is not a GGUF model",
                     quoted(as_text(*magic)));
    }
    RECUA_ASSIGN_OR_RETURN(header_.version, read<std::uint32_t>("the version"));
    if (header_.version == 2 || header_.version == 3) return ok();
    const std::uint32_t swapped = __builtin_bswap32(header_.version);
    if (swapped >= 1 && swapped <= 3) {
      return error(
          ErrorCode::kUnsupported, 4,
          "the file is a big-endian GGUF (version {}); recua reads little-endian ones, which "
          "most models are published as",
          swapped);
    }
    if (header_.version == 1) {
      return error(
          ErrorCode::kUnsupported, 4,
          "GGUF version 1 (32-bit sizes) is not supported, need 2 or 3: convert the model again "
          "with a current tool");
    }
    return error(ErrorCode::kUnsupported, 4, "GGUF version {} is not supported, need 2 or 3",
                 header_.version);
  }

  Result<ValueType> read_value_type(std::string_view field) {
    const std::size_t at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::uint32_t number, read<std::uint32_t>(field));
    if (number >= kNValueTypes) {
      return corrupt(at, "{} is {}, which is no type; types go from 0 to {}", field, number,
                     kNValueTypes - 1);
    }
    return static_cast<ValueType>(number);
  }

  template <class T>
  Result<Value> read_scalar(const std::string& field) {
    RECUA_ASSIGN_OR_RETURN(const T value, read<T>(field));
    return Value(value);
  }

  Result<bool> read_bool(const std::string& field) {
    const std::size_t at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::uint8_t value, read<std::uint8_t>(field));
    if (value > 1) return corrupt(at, "{} is a bool of value {}, must be 0 or 1", field, value);
    return value == 1;
  }

  Result<Value> read_value(ValueType type, const std::string& field) {
    switch (type) {
      case ValueType::kU8:
        return read_scalar<std::uint8_t>(field);
      case ValueType::kI8:
        return read_scalar<std::int8_t>(field);
      case ValueType::kU16:
        return read_scalar<std::uint16_t>(field);
      case ValueType::kI16:
        return read_scalar<std::int16_t>(field);
      case ValueType::kU32:
        return read_scalar<std::uint32_t>(field);
      case ValueType::kI32:
        return read_scalar<std::int32_t>(field);
      case ValueType::kU64:
        return read_scalar<std::uint64_t>(field);
      case ValueType::kI64:
        return read_scalar<std::int64_t>(field);
      case ValueType::kF32:
        return read_scalar<float>(field);
      case ValueType::kF64:
        return read_scalar<double>(field);
      case ValueType::kBool: {
        RECUA_ASSIGN_OR_RETURN(const bool value, read_bool(field));
        return Value(value);
      }
      case ValueType::kString: {
        RECUA_ASSIGN_OR_RETURN(const std::string_view text, read_string(field));
        return Value(text);
      }
      case ValueType::kArray:
        return read_array(field);
    }
    return corrupt(reader_.position(), "{} has no type", field);
  }

  Result<Value> read_array(const std::string& field) {
    const std::size_t type_at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const ValueType type,
                           read_value_type(fmt::format("the element type of {}", field)));
    if (type == ValueType::kArray) {
      return error(ErrorCode::kUnsupported, type_at,
                   "{} is an array of arrays, which recua does not read; elements must be numbers, "
                   "bools or strings",
                   field);
    }
    const std::size_t count_at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::uint64_t n,
                           read<std::uint64_t>(fmt::format("the length of {}", field)));
    const std::uint64_t n_max = reader_.remaining() / min_bytes(type);
    if (n > n_max) {
      return corrupt(count_at,
                     "{} says it has {} elements, but the {} bytes left have room for at most {}",
                     field, n, reader_.remaining(), n_max);
    }
    const std::size_t begin = reader_.position();
    if (type == ValueType::kBool) {
      for (std::uint64_t i = 0; i < n; ++i) RECUA_RETURN_IF_ERROR(read_bool(field));
    } else if (type == ValueType::kString) {
      for (std::uint64_t i = 0; i < n; ++i) RECUA_RETURN_IF_ERROR(skip_string(i, field));
    } else {
      RECUA_CHECK(reader_.take(n * min_bytes(type)).has_value());  // n <= n_max.
    }
    return Value(Array{
        .element_type = type, .n = n, .bytes = bytes_.subspan(begin, reader_.position() - begin)});
  }

  /// Element index of an array of strings. Makes its messages only when they are needed.
  Result<void> skip_string(std::uint64_t index, const std::string& field) {
    const std::size_t at = reader_.position();
    const auto length = reader_.read<std::uint64_t>();
    if (!length) return truncated(fmt::format("the length of element {} of {}", index, field), 8);
    if (reader_.take(*length)) return ok();
    return corrupt(at,
                   "element {} of {} says it is {} bytes long, but only {} are left in the file",
                   index, field, *length, reader_.remaining());
  }

  Result<void> parse_entry(std::uint64_t index) {
    const std::size_t at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::string_view key,
                           read_string(fmt::format("the key of metadata entry {}", index)));
    if (key.empty() || key.size() > kKeyBytesMax) {
      return corrupt(at, "the key of metadata entry {} has {} bytes, must be 1 to {}", index,
                     key.size(), kKeyBytesMax);
    }
    if (!keys_.insert(key).second) {
      return corrupt(at, "metadata key {} occurs a second time (entry {}); each may occur once",
                     quoted(key), index);
    }
    const std::string field = fmt::format("metadata {}", quoted(key));
    RECUA_ASSIGN_OR_RETURN(const ValueType type,
                           read_value_type(fmt::format("the type of {}", field)));
    const std::size_t value_at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const Value value, read_value(type, field));
    if (key == keys::kAlignment) RECUA_RETURN_IF_ERROR(set_alignment(value, value_at));
    header_.metadata.push_back({key, value});
    return ok();
  }

  Result<void> set_alignment(const Value& value, std::size_t at) {
    const std::optional<std::uint64_t> alignment = as_unsigned(value);
    if (!alignment || *alignment < 8 || *alignment > kAlignmentMax ||
        (*alignment & (*alignment - 1)) != 0) {
      return corrupt(at, "{} is {}, must be a power of two from 8 to {}", keys::kAlignment,
                     to_text(value, 40), kAlignmentMax);
    }
    header_.alignment = *alignment;
    return ok();
  }

  Result<void> parse_tensor(std::uint64_t index) {
    const std::size_t at = reader_.position();
    TensorInfo tensor;
    RECUA_ASSIGN_OR_RETURN(tensor.name, read_string(fmt::format("the name of tensor {}", index)));
    if (tensor.name.empty() || tensor.name.size() > kTensorNameBytesMax) {
      return corrupt(at, "the name of tensor {} has {} bytes, must be 1 to {}", index,
                     tensor.name.size(), kTensorNameBytesMax);
    }
    const std::string what = fmt::format("tensor {}", quoted(tensor.name));
    if (!tensor_names_.insert(tensor.name).second) {
      return corrupt(at, "{} occurs a second time (tensor {}); each may occur once", what, index);
    }
    RECUA_RETURN_IF_ERROR(parse_shape(tensor, what));
    RECUA_RETURN_IF_ERROR(parse_type(tensor, what));

    const std::size_t offset_at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(tensor.offset,
                           read<std::uint64_t>(fmt::format("the offset of {}", what)));
    if (tensor.offset % header_.alignment != 0) {
      return corrupt(offset_at, "{} has offset {}, which is no multiple of the alignment {}", what,
                     tensor.offset, header_.alignment);
    }
    header_.tensors.push_back(tensor);
    offset_fields_.push_back(offset_at);
    return ok();
  }

  Result<void> parse_shape(TensorInfo& tensor, const std::string& what) {
    const std::size_t at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::uint32_t n_dims,
                           read<std::uint32_t>(fmt::format("the dimension count of {}", what)));
    if (n_dims < 1 || n_dims > kDimsMax) {
      return corrupt(at, "{} has {} dimensions, must be 1 to {}", what, n_dims, kDimsMax);
    }
    tensor.n_dims = n_dims;
    tensor.n_elements = 1;
    for (std::size_t i = 0; i < n_dims; ++i) {
      const std::size_t dim_at = reader_.position();
      RECUA_ASSIGN_OR_RETURN(const std::uint64_t dim,
                             read<std::uint64_t>(fmt::format("dimension {} of {}", i, what)));
      if (dim == 0)
        return corrupt(dim_at, "{} has dimension {} of size 0, must be at least 1", what, i);
      const auto product = checked_mul(tensor.n_elements, dim);
      if (!product) {
        return corrupt(dim_at,
                       "{} has dimension {} of size {} after {} elements of the others: together "
                       "they pass 2^64",
                       what, i, dim, tensor.n_elements);
      }
      tensor.shape[i] = dim;
      tensor.n_elements = *product;
    }
    return ok();
  }

  Result<void> parse_type(TensorInfo& tensor, const std::string& what) {
    const std::size_t at = reader_.position();
    RECUA_ASSIGN_OR_RETURN(const std::uint32_t number,
                           read<std::uint32_t>(fmt::format("the type of {}", what)));
    const std::optional<quant::DataType> type = quant::data_type_from_number(number);
    if (!type) {
      return error(ErrorCode::kUnsupported, at,
                   "{} has type number {}, which recua does not know; it knows {}", what, number,
                   supported_types());
    }
    const quant::DataTypeTraits t = quant::traits(*type);
    if (tensor.shape[0] % t.block_size != 0) {
      return corrupt(
          at,
          "{} has rows of {} elements, which is no multiple of the block size {} of its type {}",
          what, tensor.shape[0], t.block_size, t.name);
    }
    const auto n_bytes =
        checked_mul<std::uint64_t>(tensor.n_elements / t.block_size, t.block_bytes);
    if (!n_bytes) {
      return corrupt(at, "{} of shape {} and type {} passes 2^64 bytes", what, tensor.shape_text(),
                     t.name);
    }
    tensor.type = *type;
    tensor.n_bytes = *n_bytes;
    return ok();
  }

  /// Turns offsets into file offsets and checks that every tensor lies inside the file on its own.
  Result<void> place_tensors() {
    const std::uint64_t size = bytes_.size();
    const std::uint64_t data_offset =
        align_up<std::uint64_t>(reader_.position(), header_.alignment);
    if (data_offset > size && !header_.tensors.empty()) {
      return corrupt(
          size,
          "the file ends before its tensor data, which begins at byte {} (is the file complete?)",
          data_offset);
    }
    header_.data_offset = std::min(data_offset, size);
    const std::uint64_t n_data = size - header_.data_offset;
    std::vector<const TensorInfo*> order;
    for (std::size_t i = 0; i < header_.tensors.size(); ++i) {
      TensorInfo& tensor = header_.tensors[i];
      const auto end = checked_add(tensor.offset, tensor.n_bytes);
      if (!end || *end > n_data) {
        return corrupt(offset_fields_[i],
                       "tensor {} ({} {}) needs {} bytes at offset {} of the tensor data, but the "
                       "file has only {} "
                       "bytes of it (is the file complete?)",
                       quoted(tensor.name), quant::traits(tensor.type).name, tensor.shape_text(),
                       tensor.n_bytes, tensor.offset, n_data);
      }
      tensor.offset += header_.data_offset;
      tensor.data = bytes_.subspan(tensor.offset, tensor.n_bytes);
      order.push_back(&tensor);
    }
    std::ranges::sort(order, {}, &TensorInfo::offset);
    for (std::size_t i = 1; i < order.size(); ++i) {
      const TensorInfo& before = *order[i - 1];
      if (before.offset + before.n_bytes > order[i]->offset) {
        return corrupt(order[i]->offset,
                       "tensor {} begins inside tensor {}, which goes from byte {} to {}",
                       quoted(order[i]->name), quoted(before.name), before.offset,
                       before.offset + before.n_bytes);
      }
    }
    return ok();
  }

  std::span<const std::byte> bytes_;
  ByteReader reader_;
  const std::string& name_;
  Header header_;
  std::set<std::string_view> keys_;
  std::set<std::string_view> tensor_names_;
  std::vector<std::size_t> offset_fields_;  // Where each tensor's offset stands, for messages.
};

}  // namespace

Result<Header> parse_header(std::span<const std::byte> bytes, const std::string& name) {
  return Parser(bytes, name).parse();
}

std::optional<std::uint64_t> as_unsigned(const Value& value) {
  return std::visit(
      [](const auto& v) -> std::optional<std::uint64_t> {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
          if (!std::in_range<std::uint64_t>(v)) return std::nullopt;
          return static_cast<std::uint64_t>(v);
        } else {
          return std::nullopt;
        }
      },
      value);
}

}  // namespace recua::gguf
