#pragma once
/// The element types of tensors as GGUF files number them, and the size of their blocks.
///
/// A row of n elements is stored as n / block_size consecutive blocks of block_bytes each; n must
/// be a multiple of block_size. Source of numbers and names: the GGUF specification.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace recua::quant {

enum class DataType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
  kMXFP4 = 39,
};

inline constexpr std::array kAllDataTypes = {
    DataType::kF32,  DataType::kF16,    DataType::kBF16,   DataType::kQ8_0,
    DataType::kQ4_0, DataType::kQ4_1,   DataType::kQ5_0,   DataType::kQ5_1,
    DataType::kQ2_K, DataType::kQ3_K,   DataType::kQ4_K,   DataType::kQ5_K,
    DataType::kQ6_K, DataType::kIQ4_NL, DataType::kIQ4_XS, DataType::kMXFP4};

/// One more than the largest number of a type.
inline constexpr std::size_t kDataTypeEnd = 40;

struct DataTypeTraits {
  std::string_view name;        // As users write it: "Q4_K", "F16".
  std::size_t block_size = 1;   // Elements per block.
  std::size_t block_bytes = 0;  // Bytes per block.
};

constexpr DataTypeTraits traits(DataType type) {
  switch (type) {
    case DataType::kF32:
      return {"F32", 1, 4};
    case DataType::kF16:
      return {"F16", 1, 2};
    case DataType::kBF16:
      return {"BF16", 1, 2};
    case DataType::kQ8_0:
      return {"Q8_0", 32, 34};
    case DataType::kQ4_0:
      return {"Q4_0", 32, 18};
    case DataType::kQ4_1:
      return {"Q4_1", 32, 20};
    case DataType::kQ5_0:
      return {"Q5_0", 32, 22};
    case DataType::kQ5_1:
      return {"Q5_1", 32, 24};
    case DataType::kQ2_K:
      return {"Q2_K", 256, 84};
    case DataType::kQ3_K:
      return {"Q3_K", 256, 110};
    case DataType::kQ4_K:
      return {"Q4_K", 256, 144};
    case DataType::kQ5_K:
      return {"Q5_K", 256, 176};
    case DataType::kQ6_K:
      return {"Q6_K", 256, 210};
    case DataType::kIQ4_NL:
      return {"IQ4_NL", 32, 18};
    case DataType::kIQ4_XS:
      return {"IQ4_XS", 256, 136};
    case DataType::kMXFP4:
      return {"MXFP4", 32, 17};
  }
  return {"?", 1, 0};
}

/// The type with this GGUF number, if recua knows it.
constexpr std::optional<DataType> data_type_from_number(std::uint32_t number) {
  for (const DataType type : kAllDataTypes) {
    if (static_cast<std::uint32_t>(type) == number) return type;
  }
  return std::nullopt;
}

/// The type a user names, in any case: "Q4_K", "q4_k", "bf16".
constexpr std::optional<DataType> data_type_from_name(std::string_view name) {
  const auto upper = [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; };
  for (const DataType type : kAllDataTypes) {
    const std::string_view own = traits(type).name;
    bool same = own.size() == name.size();
    for (std::size_t i = 0; same && i < own.size(); ++i) same = own[i] == upper(name[i]);
    if (same) return type;
  }
  return std::nullopt;
}

/// Bytes of a row of n elements. n is a multiple of the block size; n < 2^40 keeps it from
/// overflowing.
constexpr std::size_t row_bytes(DataType type, std::size_t n) {
  const DataTypeTraits t = traits(type);
  return n / t.block_size * t.block_bytes;
}

}  // namespace recua::quant
