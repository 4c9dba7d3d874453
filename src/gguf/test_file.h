#pragma once
/// Builds GGUF bytes by hand for tests, field by field, and remembers where each field stands.

#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"
#include "gguf/value.h"

namespace recua::gguf::test {

/// Writes what it is told, right or wrong. mark(name) names the offset of the next field.
class RawFile {
 public:
  RawFile& mark(const std::string& name) {
    marks_[name] = out_.size();
    return *this;
  }
  RawFile& u32(std::uint32_t v) { return raw(as_text(std::as_bytes(std::span(&v, 1)))); }
  RawFile& u64(std::uint64_t v) { return raw(as_text(std::as_bytes(std::span(&v, 1)))); }
  RawFile& u8(std::uint8_t v) { return raw(as_text(std::as_bytes(std::span(&v, 1)))); }
  // Not inlined: g++ 12 reports an overflow in the library's own code after enough of them.
  [[gnu::noinline]] RawFile& raw(std::string_view text) {
    out_.write_bytes(as_bytes(text));
    return *this;
  }
  RawFile& text(std::string_view text) { return u64(text.size()).raw(text); }
  RawFile& type(ValueType t) { return u32(static_cast<std::uint32_t>(t)); }
  RawFile& pad(std::size_t alignment) {
    out_.pad_to(alignment);
    return *this;
  }
  RawFile& zeros(std::size_t n) {
    out_.write_zeros(n);
    return *this;
  }
  RawFile& header(std::uint64_t n_tensors, std::uint64_t n_entries, std::uint32_t version = 3) {
    raw("GGUF").mark("version").u32(version).mark("tensor count").u64(n_tensors);
    return mark("metadata count").u64(n_entries);
  }
  RawFile& tensor(const std::string& name, std::initializer_list<std::uint64_t> shape,
                  std::uint32_t type_number, std::uint64_t offset) {
    mark(name + " name")
        .text(name)
        .mark(name + " dims")
        .u32(static_cast<std::uint32_t>(shape.size()));
    mark(name + " dim 0");
    for (const std::uint64_t dim : shape) u64(dim);
    mark(name + " type").u32(type_number);
    return mark(name + " offset").u64(offset);
  }

  [[nodiscard]] std::size_t at(const std::string& name) const {
    RECUA_CHECK(marks_.contains(name));
    return marks_.at(name);
  }
  [[nodiscard]] const std::map<std::string, std::size_t>& marks() const { return marks_; }
  [[nodiscard]] std::vector<std::byte> bytes() const {
    return {out_.bytes().begin(), out_.bytes().end()};
  }
  /// The bytes with one field overwritten.
  template <class T>
  [[nodiscard]] std::vector<std::byte> with(const std::string& name, T v) const {
    std::vector<std::byte> out = bytes();
    RECUA_CHECK(at(name) + sizeof(T) <= out.size());
    std::memcpy(out.data() + at(name), &v, sizeof(T));
    return out;
  }

 private:
  ByteWriter out_;
  std::map<std::string, std::size_t> marks_;
};

/// A correct file with one of everything: three entries (string, array of strings, alignment) and
/// two tensors, an F32 matrix of 8 x 2 and a Q8_0 row of 32.
inline RawFile tiny_file() {
  RawFile f;
  f.header(2, 3);
  f.mark("key length").text("general.architecture").mark("entry type").type(ValueType::kString);
  f.mark("string length").text("llama");
  f.text("tokenizer.ggml.tokens").type(ValueType::kArray).mark("element type");
  f.type(ValueType::kString).mark("array length").u64(2);
  f.mark("element length").text("a").text("bc");
  f.text("general.alignment").type(ValueType::kU32).mark("alignment").u32(32);
  f.mark("tensor infos").tensor("m", {8, 2}, 0, 0).tensor("v", {32}, 8, 64);
  f.pad(32).mark("data").zeros(64 + 34);
  return f;
}

}  // namespace recua::gguf::test
