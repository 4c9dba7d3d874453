#pragma once
/// A typed metadata value of a GGUF file.
///
/// Strings and arrays borrow the file's bytes. An array keeps its elements encoded, so reading a
/// 150 000-word vocabulary allocates nothing until somebody asks for it.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace recua::gguf {

/// As numbered in the file.
enum class ValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
inline constexpr std::uint32_t kNValueTypes = 13;

/// "u32", "string", ...
std::string_view to_string(ValueType type);

/// Bytes of one encoded value. Strings: the least, their u64 length. Arrays: 0.
constexpr std::size_t min_bytes(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    case ValueType::kU64:
    case ValueType::kI64:
    case ValueType::kF64:
    case ValueType::kString:
      return 8;
    case ValueType::kArray:
      return 0;
  }
  return 0;
}

/// n elements of one type (never kArray), encoded as in the file, any alignment. Checked by the
/// reader: strings end within bytes, bools are 0 or 1.
struct Array {
  ValueType element_type = ValueType::kU8;
  std::uint64_t n = 0;
  std::span<const std::byte> bytes;
};

/// The alternatives stand in the order of ValueType, so index() is the type.
using Value = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t,
                           std::int32_t, float, bool, std::string_view, Array, std::uint64_t,
                           std::int64_t, double>;
static_assert(std::variant_size_v<Value> == kNValueTypes);

inline ValueType type_of(const Value& value) { return static_cast<ValueType>(value.index()); }

/// What it is, for error messages: "u32", "array of 512 strings".
std::string describe_type(const Value& value);

/// The value for people: numbers in full, strings quoted with control characters escaped, both cut
/// after about chars_max characters with "...".
std::string to_text(const Value& value, std::size_t chars_max);

/// Foreign text made safe for a terminal or a log: in single quotes, control characters, quotes and
/// bytes that are not UTF-8 escaped, cut after chars_max bytes.
std::string quoted(std::string_view text, std::size_t chars_max = 80);

}  // namespace recua::gguf
