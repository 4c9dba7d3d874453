// Typed look-ups of GgufFile. Each value goes through one function that converts or says why not.
#include <limits>
#include <type_traits>

#include <fmt/format.h>

#include "base/bytes.h"
#include "gguf/gguf_file.h"

namespace recua::gguf {
namespace {

template <class T>
constexpr std::string_view wanted() {
  if constexpr (std::is_same_v<T, bool>) return "a bool";
  if constexpr (std::is_same_v<T, float>) return "a floating-point number";
  if constexpr (std::is_same_v<T, std::string_view>) return "a string";
  if constexpr (std::is_same_v<T, std::uint32_t>) return "an integer from 0 to 2^32 - 1";
  if constexpr (std::is_same_v<T, std::uint64_t>) return "an integer that is not negative";
  if constexpr (std::is_same_v<T, std::int32_t>) return "an integer of 32 bits";
  return "?";
}

/// from as a To, when its kind fits: integers into integers that can hold them, floats into float.
template <class To, class From>
std::optional<To> converted(const From& from) {
  constexpr bool kFromInteger = std::is_integral_v<From> && !std::is_same_v<From, bool>;
  constexpr bool kToInteger = std::is_integral_v<To> && !std::is_same_v<To, bool>;
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (kFromInteger && kToInteger) {
    if (std::in_range<To>(from)) return static_cast<To>(from);
  } else if constexpr (std::is_floating_point_v<From> && std::is_same_v<To, float>) {
    return static_cast<float>(from);
  }
  return std::nullopt;
}

template <class To>
std::optional<To> convert(const Value& value) {
  return std::visit([](const auto& v) { return converted<To>(v); }, value);
}

template <class To>
Result<To> convert_or_error(const GgufFile& file, std::string_view key, const Value& value) {
  if (const std::optional<To> out = convert<To>(value)) return *out;
  return Error{ErrorCode::kCorrupt,
               fmt::format("{}: metadata {} is {} ({}), must be {}", file.name(), quoted(key),
                           to_text(value, 40), describe_type(value), wanted<To>())};
}

template <class To>
Result<std::optional<To>> find_as(const GgufFile& file, std::string_view key) {
  const Value* value = file.value(key);
  if (value == nullptr) return std::optional<To>();
  RECUA_ASSIGN_OR_RETURN(To out, convert_or_error<To>(file, key, *value));
  return std::optional<To>(out);
}

/// The next element, decoded. The reader of the file has checked that it is there.
template <class To>
std::optional<To> next_element(ValueType type, ByteReader& reader) {
  switch (type) {
    case ValueType::kU8:
      return converted<To>(*reader.read<std::uint8_t>());
    case ValueType::kI8:
      return converted<To>(*reader.read<std::int8_t>());
    case ValueType::kU16:
      return converted<To>(*reader.read<std::uint16_t>());
    case ValueType::kI16:
      return converted<To>(*reader.read<std::int16_t>());
    case ValueType::kU32:
      return converted<To>(*reader.read<std::uint32_t>());
    case ValueType::kI32:
      return converted<To>(*reader.read<std::int32_t>());
    case ValueType::kU64:
      return converted<To>(*reader.read<std::uint64_t>());
    case ValueType::kI64:
      return converted<To>(*reader.read<std::int64_t>());
    case ValueType::kF32:
      return converted<To>(*reader.read<float>());
    case ValueType::kF64:
      return converted<To>(*reader.read<double>());
    case ValueType::kBool:
      return converted<To>(*reader.read<std::uint8_t>() != 0);
    case ValueType::kString:
      return converted<To>(as_text(*reader.take(*reader.read<std::uint64_t>())));
    case ValueType::kArray:
      break;
  }
  return std::nullopt;
}

template <class To>
Result<std::vector<To>> array_as(const GgufFile& file, std::string_view key, const Value& value) {
  const auto* array = std::get_if<Array>(&value);
  if (array == nullptr) {
    return Error{
        ErrorCode::kCorrupt,
        fmt::format("{}: metadata {} is {} ({}), must be an array of which each element is {}",
                    file.name(), quoted(key), to_text(value, 40), describe_type(value),
                    wanted<To>())};
  }
  std::vector<To> out;
  out.reserve(array->n);  // At most the bytes of the file: the reader bounded it.
  ByteReader reader(array->bytes);
  for (std::uint64_t i = 0; i < array->n; ++i) {
    const std::optional<To> element = next_element<To>(array->element_type, reader);
    if (!element) {
      return Error{ErrorCode::kCorrupt,
                   fmt::format("{}: metadata {} ({}): element {} must be {}", file.name(),
                               quoted(key), describe_type(value), i, wanted<To>())};
    }
    out.push_back(*element);
  }
  return out;
}

}  // namespace

const Value* GgufFile::value(std::string_view key) const {
  const auto it = metadata_index_.find(key);
  return it == metadata_index_.end() ? nullptr : &metadata_[it->second].value;
}

Result<const Value*> GgufFile::require(std::string_view key) const {
  if (const Value* found = value(key)) return found;
  return Error{ErrorCode::kNotFound,
               fmt::format("{}: metadata {} is missing", name(), quoted(key))};
}

Result<std::uint32_t> GgufFile::get_u32(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return convert_or_error<std::uint32_t>(*this, key, *found);
}
Result<std::uint64_t> GgufFile::get_u64(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return convert_or_error<std::uint64_t>(*this, key, *found);
}
Result<float> GgufFile::get_f32(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return convert_or_error<float>(*this, key, *found);
}
Result<bool> GgufFile::get_bool(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return convert_or_error<bool>(*this, key, *found);
}
Result<std::string_view> GgufFile::get_str(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return convert_or_error<std::string_view>(*this, key, *found);
}

Result<std::optional<std::uint32_t>> GgufFile::find_u32(std::string_view key) const {
  return find_as<std::uint32_t>(*this, key);
}
Result<std::optional<std::uint64_t>> GgufFile::find_u64(std::string_view key) const {
  return find_as<std::uint64_t>(*this, key);
}
Result<std::optional<float>> GgufFile::find_f32(std::string_view key) const {
  return find_as<float>(*this, key);
}
Result<std::optional<bool>> GgufFile::find_bool(std::string_view key) const {
  return find_as<bool>(*this, key);
}
Result<std::optional<std::string_view>> GgufFile::find_str(std::string_view key) const {
  return find_as<std::string_view>(*this, key);
}

Result<std::vector<std::string_view>> GgufFile::get_str_array(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return array_as<std::string_view>(*this, key, *found);
}
Result<std::vector<float>> GgufFile::get_f32_array(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return array_as<float>(*this, key, *found);
}
Result<std::vector<std::int32_t>> GgufFile::get_i32_array(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return array_as<std::int32_t>(*this, key, *found);
}
Result<std::vector<std::uint32_t>> GgufFile::get_u32_array(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return array_as<std::uint32_t>(*this, key, *found);
}
Result<std::vector<bool>> GgufFile::get_bool_array(std::string_view key) const {
  RECUA_ASSIGN_OR_RETURN(const Value* found, require(key));
  return array_as<bool>(*this, key, *found);
}

}  // namespace recua::gguf
