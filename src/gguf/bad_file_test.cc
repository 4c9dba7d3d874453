// Every way in which a file can lie: each gets its own error, which names the file, the place and
// the value, and nothing is read or allocated beyond the file.
#include <cstring>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "gguf/gguf_file.h"
#include "gguf/test_file.h"

namespace recua::gguf {
namespace {

using test::RawFile;
using test::tiny_file;

/// The error of a file that must not parse; empty and a failed test if it does.
std::string error_of(const std::vector<std::byte>& bytes, ErrorCode code = ErrorCode::kCorrupt) {
  const auto file = GgufFile::parse(bytes, "bad.gguf");
  EXPECT_FALSE(file.ok());
  if (file.ok()) return "";
  EXPECT_EQ(to_string(file.error().code), to_string(code)) << file.error().message;
  EXPECT_TRUE(file.error().message.find("bad.gguf: ") != std::string::npos) << file.error().message;
  return file.error().message;
}

#define EXPECT_SAYS(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

TEST(BadGguf, TruncatedAtAnyByteIsNoticed) {
  const std::vector<std::byte> whole = tiny_file().bytes();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    SCOPED_TRACE(n);
    // A copy of exactly n bytes: the sanitizers see any read beyond.
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
    error_of(cut);
  }
}

TEST(BadGguf, TruncatedAtASectionSaysWhichAndWhere) {
  const RawFile f = tiny_file();
  const auto cut_at = [&f](const std::string& mark, std::size_t more) {
    std::vector<std::byte> bytes = f.bytes();
    bytes.resize(f.at(mark) + more);
    return error_of(bytes);
  };
  EXPECT_SAYS(cut_at("version", 0),
              "byte 4: the file ends inside the version: it needs 4 bytes, 0 are");
  EXPECT_SAYS(cut_at("tensor count", 3), "the file ends inside the tensor count");
  EXPECT_SAYS(cut_at("metadata count", 0), "the file ends inside the metadata count");
  EXPECT_SAYS(cut_at("key length", 0),
              "the tensor count is 2, but the 0 bytes left have room for at most 0");
  EXPECT_SAYS(cut_at("alignment", 0), "the file ends inside metadata 'general.alignment'");
  EXPECT_SAYS(cut_at("tensor infos", 0), "the file ends inside the length of the name of tensor 0");
  EXPECT_SAYS(cut_at("data", 0),
              "tensor 'm' (F32 [8, 2]) needs 64 bytes at offset 0 of the tensor data");
  EXPECT_SAYS(cut_at("data", 64), "tensor 'v' (Q8_0 [32]) needs 34 bytes at offset 64");
  std::vector<std::byte> empty;
  EXPECT_EQ(error_of(empty), "bad.gguf: the file is empty");
}

TEST(BadGguf, EverySizeFieldMayHoldAnything) {
  const RawFile f = tiny_file();
  const std::vector<std::string> fields = {"tensor count",  "metadata count", "key length",
                                           "string length", "array length",   "element length",
                                           "m name",        "m dim 0",        "m offset",
                                           "v name",        "v dim 0",        "v offset"};
  for (const std::string& field : fields) {
    for (const std::uint64_t value :
         {std::uint64_t{1} << 31, std::uint64_t{1} << 32, std::uint64_t{1} << 63, ~std::uint64_t{0},
          ~std::uint64_t{31}}) {
      SCOPED_TRACE(fmt::format("{} = {}", field, value));
      const std::string message = error_of(f.with(field, value));
      EXPECT_SAYS(message, "byte ");
      EXPECT_TRUE(message.find(fmt::format("{}", value)) != std::string::npos ||
                  message.find("needs") != std::string::npos)
          << message;
    }
  }
}

TEST(BadGguf, CountsSayWhatTheFileHasRoomFor) {
  const RawFile f = tiny_file();
  EXPECT_SAYS(error_of(f.with("tensor count", ~std::uint64_t{0})),
              "byte 8: the tensor count is 18446744073709551615, but the");
  EXPECT_SAYS(error_of(f.with("metadata count", std::uint64_t{1} << 31)),
              "byte 16: the metadata count is 2147483648, but the");
  EXPECT_SAYS(error_of(f.with("key length", std::uint64_t{1} << 63)),
              "the key of metadata entry 0 says it is 9223372036854775808 bytes long, but only");
  EXPECT_SAYS(error_of(f.with("array length", std::uint64_t{1} << 32)),
              "metadata 'tokenizer.ggml.tokens' says it has 4294967296 elements");
  EXPECT_SAYS(error_of(f.with("element length", std::uint64_t{1} << 32)),
              "element 0 of metadata 'tokenizer.ggml.tokens' says it is 4294967296 bytes long");
  EXPECT_SAYS(error_of(f.with("m dim 0", std::uint64_t{1} << 63)),
              "dimension 1 of size 2 after 9223372036854775808 elements of the others");
}

TEST(BadGguf, AlignmentIsAPowerOfTwo) {
  const RawFile f = tiny_file();
  for (const std::uint32_t value : {0U, 1U, 3U, 4U, 48U, 1U << 31, ~0U}) {
    EXPECT_SAYS(
        error_of(f.with("alignment", value)),
        fmt::format("general.alignment is {}, must be a power of two from 8 to 16777216", value));
  }
  // Right in itself, but then nothing stands where the file says.
  EXPECT_SAYS(error_of(f.with("alignment", 1U << 20)), "no multiple of the alignment 1048576");
}

TEST(BadGguf, OtherFormatsAndVersionsAreNamed) {
  const RawFile f = tiny_file();
  EXPECT_SAYS(error_of(RawFile().raw("PK\x03\x04 and so on").bytes()),
              "begins with 'PK\\x03\\x04'");
  EXPECT_SAYS(error_of(f.with("version", 1U), ErrorCode::kUnsupported), "version 1 (32-bit sizes)");
  EXPECT_SAYS(error_of(f.with("version", 4U), ErrorCode::kUnsupported),
              "version 4 is not supported, need 2 or 3");
  EXPECT_SAYS(error_of(f.with("version", 0x03000000U), ErrorCode::kUnsupported),
              "big-endian GGUF (version 3)");
}

TEST(BadGguf, ValuesHaveAKnownType) {
  const RawFile f = tiny_file();
  EXPECT_SAYS(error_of(f.with("entry type", 13U)),
              "the type of metadata 'general.architecture' is 13, which is no type");
  EXPECT_SAYS(error_of(f.with("element type", 0x80000000U)), "the element type of metadata");
  EXPECT_SAYS(error_of(f.with("element type", 9U), ErrorCode::kUnsupported), "an array of arrays");
  RawFile flag;
  flag.header(0, 1).text("flag").type(ValueType::kBool).u8(2);
  EXPECT_SAYS(error_of(flag.bytes()), "metadata 'flag' is a bool of value 2, must be 0 or 1");
  RawFile flags;
  flags.header(0, 1)
      .text("flags")
      .type(ValueType::kArray)
      .type(ValueType::kBool)
      .u64(2)
      .u8(1)
      .u8(255);
  EXPECT_SAYS(error_of(flags.bytes()), "metadata 'flags' is a bool of value 255");
}

TEST(BadGguf, KeysAreUniqueAndNotEmpty) {
  RawFile twice;
  twice.header(0, 2).text("k").type(ValueType::kU8).u8(1).text("k").type(ValueType::kU8).u8(1);
  EXPECT_SAYS(error_of(twice.bytes()), "byte 38: metadata key 'k' occurs a second time (entry 1)");
  RawFile empty;
  empty.header(0, 1).text("").type(ValueType::kU32).u32(1);
  EXPECT_SAYS(error_of(empty.bytes()),
              "the key of metadata entry 0 has 0 bytes, must be 1 to 65535");
}

RawFile with_tensors(
    std::initializer_list<std::tuple<std::string, std::uint64_t, std::uint64_t>> list) {
  RawFile f;
  f.header(list.size(), 0);
  for (const auto& [name, n, offset] : list) f.tensor(name, {n}, 0, offset);
  f.pad(32).zeros(256);
  return f;
}

TEST(BadGguf, TensorsAreUniqueNamedAndApart) {
  EXPECT_SAYS(error_of(with_tensors({{"t", 8, 0}, {"t", 8, 32}}).bytes()),
              "tensor 't' occurs a second time (tensor 1)");
  EXPECT_SAYS(error_of(with_tensors({{"a", 9, 0}, {"b", 8, 32}}).bytes()),
              "tensor 'b' begins inside tensor 'a', which goes from byte");
  EXPECT_SAYS(error_of(with_tensors({{"a", 8, 0}, {"b", 8, 0}}).bytes()), "begins inside tensor");
  EXPECT_SAYS(error_of(with_tensors({{"", 8, 0}}).bytes()), "the name of tensor 0 has 0 bytes");
  EXPECT_SAYS(error_of(with_tensors({{std::string(300, 'x'), 8, 0}}).bytes()), "has 300 bytes");
  EXPECT_SAYS(error_of(with_tensors({{"a", 8, 33}}).bytes()),
              "tensor 'a' has offset 33, which is no multiple of the alignment 32");
  EXPECT_SAYS(error_of(with_tensors({{"a", 8, 256}}).bytes()), "needs 32 bytes at offset 256");
}

TEST(BadGguf, ShapesAndTypesOfTensorsAreChecked) {
  const RawFile f = tiny_file();
  for (const std::uint32_t n : {0U, 5U, 1U << 31}) {
    EXPECT_SAYS(error_of(f.with("m dims", n)),
                fmt::format("tensor 'm' has {} dimensions, must be 1 to 4", n));
  }
  EXPECT_SAYS(error_of(f.with("m dim 0", std::uint64_t{0})),
              "dimension 0 of size 0, must be at least 1");
  EXPECT_SAYS(
      error_of(f.with("v dim 0", std::uint64_t{33})),
      "tensor 'v' has rows of 33 elements, which is no multiple of the block size 32 of its "
      "type Q8_0");
  const std::string unknown = error_of(f.with("v type", 22U), ErrorCode::kUnsupported);
  EXPECT_SAYS(unknown,
              "tensor 'v' has type number 22, which recua does not know; it knows F32 F16 BF16");
  EXPECT_SAYS(error_of(f.with("v type", ~0U), ErrorCode::kUnsupported), "4294967295");
}

TEST(BadGguf, ASplitModelIsNotReadFromMemory) {
  RawFile f;
  f.header(0, 1).text("split.count").type(ValueType::kU32).u32(3);
  EXPECT_SAYS(error_of(f.bytes(), ErrorCode::kUnsupported), "split into 3 files");
}

TEST(BadGguf, RandomDamageNeverCrashes) {
  const std::vector<std::byte> whole = tiny_file().bytes();
  Rng rng(1);
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> bytes = whole;
    const std::uint64_t n_changes = 1 + rng.below(4);
    for (std::uint64_t i = 0; i < n_changes; ++i) {
      bytes[rng.below(bytes.size())] = static_cast<std::byte>(rng.next());
    }
    const auto file = GgufFile::parse(bytes, "bad.gguf");
    if (!file.ok()) continue;
    for (const TensorInfo& tensor : file->tensors()) {
      ASSERT_GE(tensor.data.data(), bytes.data());
      ASSERT_LE(tensor.data.data() + tensor.data.size(), bytes.data() + bytes.size());
    }
  }
}

}  // namespace
}  // namespace recua::gguf
