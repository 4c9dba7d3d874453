#pragma once
/// Parses the header of one GGUF file: everything before the tensors' bytes, which it only bounds.
///
/// Used by GgufFile, which says what the rules are.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "gguf/gguf_file.h"

namespace recua::gguf {

struct Header {
  std::uint32_t version = 0;
  std::uint64_t alignment = kAlignmentDefault;
  std::uint64_t data_offset = 0;  // Where the tensors' bytes begin; at most the file's size.
  std::vector<GgufFile::Entry> metadata;
  std::vector<TensorInfo> tensors;  // All checked to lie inside the file; shard is 0.
};

/// bytes: the whole file; what is returned borrows them. name goes into errors.
Result<Header> parse_header(std::span<const std::byte> bytes, const std::string& name);

/// The value as an unsigned integer, if it is an integer and not negative.
std::optional<std::uint64_t> as_unsigned(const Value& value);

}  // namespace recua::gguf
