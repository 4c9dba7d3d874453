#include "gguf/value.h"

#include <fmt/format.h>

#include "base/bytes.h"

namespace recua::gguf {
namespace {

/// Bytes of the well-formed UTF-8 character that text begins with; 0 if it does not (RFC 3629).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool surrogate = first == 0xed && second > 0x9f;
  const bool too_big = first == 0xf4 && second > 0x8f;
  return overlong || surrogate || too_big ? 0 : length;
}

std::string array_text(const Array& array, std::size_t chars_max) {
  std::string out = "[";
  ByteReader reader(array.bytes);
  for (std::uint64_t i = 0; i < array.n; ++i) {
    if (i > 0) out += ", ";
    if (out.size() >= chars_max) return fmt::format("{}... {} in all]", out, array.n);
    switch (array.element_type) {
      case ValueType::kU8:
        out += fmt::format("{}", reader.read<std::uint8_t>().value_or(0));
        break;
      case ValueType::kI8:
        out += fmt::format("{}", reader.read<std::int8_t>().value_or(0));
        break;
      case ValueType::kU16:
        out += fmt::format("{}", reader.read<std::uint16_t>().value_or(0));
        break;
      case ValueType::kI16:
        out += fmt::format("{}", reader.read<std::int16_t>().value_or(0));
        break;
      case ValueType::kU32:
        out += fmt::format("{}", reader.read<std::uint32_t>().value_or(0));
        break;
      case ValueType::kI32:
        out += fmt::format("{}", reader.read<std::int32_t>().value_or(0));
        break;
      case ValueType::kU64:
        out += fmt::format("{}", reader.read<std::uint64_t>().value_or(0));
        break;
      case ValueType::kI64:
        out += fmt::format("{}", reader.read<std::int64_t>().value_or(0));
        break;
      case ValueType::kF32:
        out += fmt::format("{}", reader.read<float>().value_or(0));
        break;
      case ValueType::kF64:
        out += fmt::format("{}", reader.read<double>().value_or(0));
        break;
      case ValueType::kBool:
        out += reader.read<std::uint8_t>().value_or(0) != 0 ? "true" : "false";
        break;
      case ValueType::kString: {
        const std::uint64_t n = reader.read<std::uint64_t>().value_or(0);
        const auto bytes = reader.take(n).value_or(std::span<const std::byte>{});
        out += quoted(as_text(bytes), chars_max);
        break;
      }
      case ValueType::kArray:
        break;  // The reader refuses arrays of arrays.
    }
  }
  return out + "]";
}

}  // namespace

std::string_view to_string(ValueType type) {
  switch (type) {
    case ValueType::kU8:
      return "u8";
    case ValueType::kI8:
      return "i8";
    case ValueType::kU16:
      return "u16";
    case ValueType::kI16:
      return "i16";
    case ValueType::kU32:
      return "u32";
    case ValueType::kI32:
      return "i32";
    case ValueType::kF32:
      return "f32";
    case ValueType::kBool:
      return "bool";
    case ValueType::kString:
      return "string";
    case ValueType::kArray:
      return "array";
    case ValueType::kU64:
      return "u64";
    case ValueType::kI64:
      return "i64";
    case ValueType::kF64:
      return "f64";
  }
  return "?";
}

std::string describe_type(const Value& value) {
  if (const auto* array = std::get_if<Array>(&value)) {
    return fmt::format("array of {} {}", array->n, to_string(array->element_type));
  }
  return std::string(to_string(type_of(value)));
}

std::string to_text(const Value& value, std::size_t chars_max) {
  return std::visit(
      [chars_max](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, Array>) {
          return array_text(v, chars_max);
        } else if constexpr (std::is_same_v<T, std::string_view>) {
          return quoted(v, chars_max);
        } else {
          return fmt::format("{}", v);
        }
      },
      value);
}

std::string quoted(std::string_view text, std::size_t chars_max) {
  std::string out = "'";
  for (std::size_t i = 0; i < text.size();) {
    if (i >= chars_max) return out + "...'";
    const std::size_t length = utf8_length(text.substr(i));
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c1_control =
        length == 2 && byte == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (byte == '\n') {
      out += "\\n";
    } else if (byte == '\'' || byte == '\\') {
      out += '\\';
      out += text[i];
    } else if (length == 0 || byte < 0x20 || byte == 0x7f || c1_control) {
      out += fmt::format("\\x{:02x}", byte);
      i += 1;
      continue;  // What follows a broken or control byte is looked at on its own.
    } else {
      out += text.substr(i, length);
    }
    i += length;
  }
  return out + "'";
}

}  // namespace recua::gguf
