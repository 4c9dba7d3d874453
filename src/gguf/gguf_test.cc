#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "base/scratch_folder.h"
#include "gguf/gguf_file.h"
#include "gguf/gguf_writer.h"
#include "gguf/test_file.h"

namespace recua::gguf {
namespace {

using quant::DataType;

/// A directory of this test's own.
class TemporaryDir : public ScratchFolder {
 public:
  [[nodiscard]] std::size_t n_files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path()), {}));
  }
};

std::vector<std::byte> random_bytes(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::byte> out(n);
  for (std::byte& b : out) b = static_cast<std::byte>(rng.next());
  return out;
}

TEST(GgufReader, ReadsTheTinyFile) {
  for (const std::uint32_t version : {2U, 3U}) {
    const auto bytes = test::tiny_file().with("version", version);
    const auto file = GgufFile::parse(bytes, "tiny.gguf");
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_EQ(file->version(), version);
    EXPECT_EQ(file->metadata().size(), 3U);
    EXPECT_EQ(*file->get_str("general.architecture"), "llama");
    EXPECT_EQ(*file->get_str_array("tokenizer.ggml.tokens"),
              (std::vector<std::string_view>{"a", "bc"}));
    ASSERT_EQ(file->tensors().size(), 2U);
    const TensorInfo* m = file->find("m");
    ASSERT_NE(m, nullptr);
    EXPECT_EQ(m->n_dims, 2U);
    EXPECT_EQ(m->shape_text(), "[8, 2]");
    EXPECT_EQ(m->n_rows(), 2U);
    EXPECT_EQ(m->n_bytes, 64U);
    EXPECT_EQ(m->data.data(), bytes.data() + file->data_offset(0));
    const TensorInfo* v = file->find("v");
    ASSERT_NE(v, nullptr);
    EXPECT_EQ(v->type, DataType::kQ8_0);
    EXPECT_EQ(v->offset, file->data_offset(0) + 64);
    EXPECT_EQ(v->n_bytes, 34U);
    EXPECT_EQ(file->find("w"), nullptr);
    EXPECT_EQ(file->tensor("w").error().code, ErrorCode::kNotFound);
  }
}

TEST(GgufReader, ReadsAFileWithoutTensorsAndWithoutPadding) {
  test::RawFile f;
  f.header(0, 1).text("k").type(ValueType::kU8).u8(7);
  const auto bytes = f.bytes();
  const auto file = GgufFile::parse(bytes, "vocab.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(*file->get_u32("k"), 7U);
}

TEST(GgufReader, ConvertsNumbersOnlyWhenTheyFit) {
  GgufWriter writer;
  writer.add("u8", Value(std::uint8_t{200}));
  writer.add("i8", Value(std::int8_t{-3}));
  writer.add("u64", Value(std::uint64_t{1} << 40));
  writer.add("i64", Value(std::int64_t{77}));
  writer.add("f64", Value(0.5));
  writer.add("f32", Value(1e-5F));
  writer.add("bool", Value(true));
  writer.add("text", "words");
  writer.add("list", std::vector<std::int32_t>{1, -2, 3});
  const auto bytes = writer.header();
  const auto file = GgufFile::parse(bytes, "numbers.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(*file->get_u32("u8"), 200U);
  EXPECT_EQ(*file->get_u32("i64"), 77U);
  EXPECT_EQ(*file->get_u64("u64"), std::uint64_t{1} << 40);
  EXPECT_EQ(*file->get_f32("f64"), 0.5F);
  EXPECT_EQ(*file->get_f32("f32"), 1e-5F);
  EXPECT_TRUE(*file->get_bool("bool"));
  EXPECT_EQ(*file->get_i32_array("list"), (std::vector<std::int32_t>{1, -2, 3}));
  EXPECT_EQ(*file->find_u32("none"), std::nullopt);

  EXPECT_EQ(
      file->get_u32("u64").error().message,
      "numbers.gguf: metadata 'u64' is 1099511627776 (u64), must be an integer from 0 to 2^32 - 1");
  EXPECT_EQ(file->get_u32("i8").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(file->get_f32("u8").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(file->get_bool("u8").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(file->find_str("bool").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(file->get_str("none").error().message, "numbers.gguf: metadata 'none' is missing");
  EXPECT_EQ(
      file->get_u32_array("list").error().message,
      "numbers.gguf: metadata 'list' (array of 3 i32): element 1 must be an integer from 0 to "
      "2^32 - 1");
  EXPECT_EQ(file->get_f32_array("text").error().code, ErrorCode::kCorrupt);
}

TEST(GgufWriter, WritesWhatTheReaderReads) {
  const TemporaryDir dir;
  for (const std::uint64_t alignment : {8U, 32U, 256U}) {
    GgufWriter writer(alignment);
    writer.add("general.architecture", "llama");
    writer.add("words", std::vector<std::string_view>{"", "two", "\xff\n"});
    writer.add("numbers", std::vector<float>{1.5F, -0.0F});
    writer.add_tensor("a", DataType::kF16, std::vector<std::uint64_t>{3, 5});
    writer.add_tensor("b", DataType::kQ4_K, std::vector<std::uint64_t>{256, 2, 3});
    const std::vector<std::byte> data = random_bytes(30 + 144 * 6, alignment);
    const auto path = dir / fmt::format("{}.gguf", alignment);
    ASSERT_TRUE(writer.begin(path).ok());
    for (std::size_t at = 0; at < data.size();
         at += 17) {  // In pieces that cross the tensors' border.
      const std::size_t n = std::min<std::size_t>(17, data.size() - at);
      ASSERT_TRUE(writer.write(std::span(data).subspan(at, n)).ok());
    }
    EXPECT_FALSE(std::filesystem::exists(path));
    ASSERT_TRUE(writer.finish().ok());
    EXPECT_EQ(std::filesystem::file_size(path), writer.file_bytes());

    const auto file = GgufFile::open(path);
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_EQ(file->alignment(), alignment);
    EXPECT_EQ(*file->get_str_array("words"), (std::vector<std::string_view>{"", "two", "\xff\n"}));
    EXPECT_EQ(*file->get_f32_array("numbers"), (std::vector<float>{1.5F, -0.0F}));
    const TensorInfo* a = file->find("a");
    const TensorInfo* b = file->find("b");
    ASSERT_TRUE(a != nullptr && b != nullptr);
    EXPECT_EQ(a->offset % alignment, 0U);
    EXPECT_EQ(b->offset % alignment, 0U);
    EXPECT_EQ(std::memcmp(a->data.data(), data.data(), 30), 0);
    EXPECT_EQ(std::memcmp(b->data.data(), data.data() + 30, 144 * 6), 0);
    EXPECT_EQ(b->shape_text(), "[256, 2, 3]");
  }
}

TEST(GgufWriter, LeavesNothingBehindWhenItIsNotFinished) {
  const TemporaryDir dir;
  {
    GgufWriter writer;
    writer.add_tensor("a", DataType::kF32, std::vector<std::uint64_t>{4});
    ASSERT_TRUE(writer.begin(dir / "half.gguf").ok());
    EXPECT_EQ(dir.n_files(), 1U);
  }
  EXPECT_EQ(dir.n_files(), 0U);
}

TEST(GgufWriter, NamesThePathThatItCannotCreate) {
  GgufWriter writer;
  const auto result = writer.begin("/nonexistent-dir/x.gguf");
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kIo);
  EXPECT_NE(result.error().message.find("/nonexistent-dir/x.gguf"), std::string::npos);
}

TEST(GgufSplitName, IsFoundAndBuilt) {
  const auto split = parse_split_name("/m/big-00002-of-00003.gguf");
  ASSERT_TRUE(split.has_value());
  EXPECT_EQ(split->index, 1U);
  EXPECT_EQ(split->n_shards, 3U);
  EXPECT_EQ(split->shard_path(2), "/m/big-00003-of-00003.gguf");
  for (const char* other : {"model.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf",
                            "a-0001-of-00003.gguf", "00001-of-00003.gguf", "a-00001-of-00003.bin",
                            "a-000x1-of-00003.gguf", "a-+0001-of-00003.gguf", ""}) {
    EXPECT_FALSE(parse_split_name(other).has_value()) << other;
  }
}

/// Writes one shard with a single F32 tensor of four equal numbers.
void write_shard(const std::filesystem::path& path, std::uint16_t index, std::uint16_t n_shards,
                 const std::string& tensor_name, float value, int n_tensors_claimed = 3) {
  GgufWriter writer;
  if (index == 0) writer.add("general.name", "split model");
  writer.add(keys::kSplitIndex, Value(index));
  writer.add(keys::kSplitCount, Value(n_shards));
  writer.add(keys::kSplitTensors, Value(std::int32_t{n_tensors_claimed}));
  writer.add_tensor(tensor_name, DataType::kF32, std::vector<std::uint64_t>{4});
  const std::vector<float> data(4, value);
  ASSERT_TRUE(writer.begin(path).ok());
  ASSERT_TRUE(writer.write(std::as_bytes(std::span(data))).ok());
  ASSERT_TRUE(writer.finish().ok());
}

TEST(GgufSplit, OpensThroughAnyShard) {
  const TemporaryDir dir;
  for (std::uint16_t i = 0; i < 3; ++i) {
    write_shard(dir / fmt::format("m-0000{}-of-00003.gguf", i + 1), i, 3, fmt::format("t{}", i), i);
  }
  for (int i = 1; i <= 3; ++i) {
    const auto file = GgufFile::open(dir / fmt::format("m-0000{}-of-00003.gguf", i));
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_EQ(file->n_shards(), 3U);
    EXPECT_EQ(*file->get_str("general.name"), "split model");
    for (std::size_t t = 0; t < 3; ++t) {
      const TensorInfo* info = file->find(fmt::format("t{}", t));
      ASSERT_NE(info, nullptr);
      EXPECT_EQ(info->shard, t);
      float value = -1.0F;
      std::memcpy(&value, info->data.data(), 4);
      EXPECT_EQ(value, static_cast<float>(t));
    }
  }
}

TEST(GgufSplit, SaysWhichShardIsMissingWrongOrDouble) {
  const TemporaryDir dir;
  const auto first = dir / "m-00001-of-00003.gguf";
  write_shard(first, 0, 3, "t0", 0);
  write_shard(dir / "m-00002-of-00003.gguf", 1, 3, "t1", 0);
  auto file = GgufFile::open(first);
  EXPECT_NE(file.error().message.find("m-00003-of-00003.gguf"), std::string::npos);
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);

  write_shard(dir / "m-00003-of-00003.gguf", 1, 3, "t2", 0);
  file = GgufFile::open(first);
  EXPECT_NE(file.error().message.find("says it is part 1 of 3"), std::string::npos)
      << file.error().message;

  write_shard(dir / "m-00003-of-00003.gguf", 2, 3, "t1", 0);
  file = GgufFile::open(first);
  EXPECT_NE(file.error().message.find("tensor 't1' is already in"), std::string::npos)
      << file.error().message;

  write_shard(dir / "m-00003-of-00003.gguf", 2, 3, "t2", 0);
  write_shard(first, 0, 3, "t0", 0, 4);
  file = GgufFile::open(first);
  EXPECT_NE(file.error().message.find("has 4 tensors, but its 3 files hold 3"), std::string::npos)
      << file.error().message;

  std::filesystem::copy_file(first, dir / "renamed.gguf");
  file = GgufFile::open(dir / "renamed.gguf");
  EXPECT_NE(file.error().message.find("its name must end in"), std::string::npos)
      << file.error().message;
}

TEST(GgufReader, TakesTheTensorsOfAnotherFileAlong) {
  const auto file_of = [](std::string_view tensor, std::byte fill) {
    GgufWriter writer;
    writer.add("general.name", tensor);
    writer.add_tensor(tensor, DataType::kF32, std::array<std::uint64_t, 1>{8});
    std::vector<std::byte> bytes = writer.header();
    bytes.resize(bytes.size() + 32, fill);
    auto file = GgufFile::parse_owned(std::move(bytes), std::string(tensor) + ".gguf");
    EXPECT_TRUE(file.ok()) << file.error().message;
    return std::move(file).value();
  };
  GgufFile file = file_of("a", std::byte{1});
  ASSERT_TRUE(file.append(file_of("b", std::byte{2})).ok());
  EXPECT_EQ(file.n_shards(), 2U);
  EXPECT_EQ(file.name(), "a.gguf");
  EXPECT_EQ(file.shard_name(1), "b.gguf");
  EXPECT_FALSE(file.is_mapped(1));
  ASSERT_NE(file.find("b"), nullptr);
  EXPECT_EQ(file.find("b")->shard, 1U);
  EXPECT_EQ(file.find("b")->data[31], std::byte{2});
  EXPECT_EQ(file.find("a")->data[0], std::byte{1});
  EXPECT_EQ(*file.get_str("general.name"), "a");
  const auto again = file.append(file_of("b", std::byte{3}));
  ASSERT_FALSE(again.ok());
  EXPECT_NE(again.error().message.find("tensor 'b' is in a.gguf already"), std::string::npos)
      << again.error().message;
}

TEST(GgufReader, ReadsPublishedFiles) {
  const std::filesystem::path data = RECUA_SHARED_DATA;
  if (!std::filesystem::exists(data / "models/stories260K.gguf")) {
    GTEST_SKIP() << "skipped: no shared data";
  }
  const auto story = GgufFile::open(data / "models/stories260K.gguf");
  ASSERT_TRUE(story.ok()) << story.error().message;
  EXPECT_EQ(*story->get_u32(arch_key("llama", arch::kNLayers)), 5U);
  EXPECT_EQ(story->tensors().size(), 48U);
  EXPECT_EQ(story->get_str_array(keys::kTokens)->size(), 512U);
  EXPECT_EQ(story->get_f32_array(keys::kTokenScores)->size(), 512U);
  EXPECT_EQ(*story->get_u32(keys::kPaddingId), 0xffffffffU);
  for (const char* vocabulary : {"gpt-2", "phi-3", "qwen3"}) {
    const auto file = GgufFile::open(data / fmt::format("tokenizers/vocab/{}.gguf", vocabulary));
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_TRUE(file->tensors().empty());
    EXPECT_GT(file->get_str_array(keys::kTokens)->size(), 30000U);
  }
}

TEST(GgufText, IsSafeToPrint) {
  EXPECT_EQ(quoted("plain"), "'plain'");
  EXPECT_EQ(quoted("t\xc3\xa9xt \xe2\x96\x81"), "'t\xc3\xa9xt \xe2\x96\x81'");
  EXPECT_EQ(quoted("a'\\\x1b[31m\n"), "'a\\'\\\\\\x1b[31m\\n'");
  EXPECT_EQ(quoted("\xff\xc3"), "'\\xff\\xc3'");
  EXPECT_EQ(quoted("\xc2\x9b"), "'\\xc2\\x9b'");           // The 8-bit escape sequence introducer.
  EXPECT_EQ(quoted("\xed\xa0\x80"), "'\\xed\\xa0\\x80'");  // A surrogate.
  EXPECT_EQ(quoted("abcdef", 3), "'abc...'");
}

}  // namespace
}  // namespace recua::gguf
