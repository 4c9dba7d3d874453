#include <filesystem>
#include <limits>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "base/random.h"
#include "base/result.h"
#include "base/scratch_folder.h"
#include "base/sha256.h"

namespace recua {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return Error{ErrorCode::kInvalidArgument, "odd"};
  return n / 2;
}

Result<int> quarter(int n) {
  RECUA_ASSIGN_OR_RETURN(const int h, half(n));
  return half(h);
}

TEST(Result, CarriesValueOrError) {
  EXPECT_EQ(quarter(8).value(), 2);
  EXPECT_EQ(quarter(6).error().message, "odd");
  EXPECT_EQ(std::move(quarter(6).error()).within("six").message, "six: odd");
}

TEST(Result, ConvertsFromWhatItsValueConvertsFrom) {
  const Result<std::unique_ptr<const int>> result = std::make_unique<int>(3);
  EXPECT_EQ(*result.value(), 3);
}

TEST(CheckedArithmetic, RefusesOverflow) {
  constexpr auto kMax = std::numeric_limits<std::uint64_t>::max();
  EXPECT_FALSE(checked_add(kMax, std::uint64_t{1}).has_value());
  EXPECT_FALSE(checked_mul(std::uint64_t{1} << 33, std::uint64_t{1} << 31).has_value());
  EXPECT_EQ(checked_mul(std::uint64_t{3}, std::uint64_t{4}), 12u);
  EXPECT_EQ(align_up(std::size_t{33}, std::size_t{32}), 64u);
}

TEST(ByteReader, NeverReadsPastItsEnd) {
  ByteWriter writer;
  writer.write<std::uint32_t>(0x01020304u);
  writer.write<std::uint8_t>(5);
  ByteReader reader(writer.bytes());
  EXPECT_EQ(reader.read<std::uint32_t>(), 0x01020304u);
  EXPECT_FALSE(reader.read<std::uint16_t>().has_value());
  EXPECT_FALSE(reader.take(std::numeric_limits<std::uint64_t>::max()).has_value());
  EXPECT_EQ(reader.read<std::uint8_t>(), 5);
  EXPECT_EQ(reader.remaining(), 0u);
}

TEST(MappedFile, NamesThePathOfAMissingFile) {
  const auto file = MappedFile::open("/nonexistent/model.gguf");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
  EXPECT_NE(file.error().message.find("/nonexistent/model.gguf"), std::string::npos);
}

TEST(MappedFile, KeepsBytesWhosePagesWereDropped) {
  const ScratchFolder folder;
  std::vector<std::byte> bytes(100000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7);
  ASSERT_TRUE(write_file_atomically(folder / "file", bytes).ok());
  const MappedFile file = MappedFile::open(folder / "file").value();
  drop_mapped_pages(file.bytes().subspan(5000, 60001));
  drop_mapped_pages({});
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), file.bytes().begin()));
}

TEST(MappedFile, ReadsWhatWasWritten) {
  const auto path = std::filesystem::temp_directory_path() / "recua_base_test.bin";
  ASSERT_TRUE(write_file_atomically(path, as_bytes("pack train")).ok());
  const auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(as_text(file->bytes()), "pack train");
  EXPECT_EQ(read_file(path, 100).value(), "pack train");
  EXPECT_EQ(read_file(path, 5).error().code, ErrorCode::kResourceExhausted);
  std::filesystem::remove(path);
}

TEST(Sha256, MatchesTheStandardsExample) {  // FIPS 180-4, "abc"
  EXPECT_EQ(to_hex(sha256(as_bytes("abc"))),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(EqualInConstantTime, ComparesLengthsAndBytes) {
  EXPECT_TRUE(equal_in_constant_time(as_bytes("secret"), as_bytes("secret")));
  EXPECT_FALSE(equal_in_constant_time(as_bytes("secret"), as_bytes("secreT")));
  EXPECT_FALSE(equal_in_constant_time(as_bytes("secret"), as_bytes("secrets")));
}

TEST(Rng, IsReproducibleAndSpreadOut) {
  Rng a(7), b(7);
  double sum = 0, squares = 0;
  for (int i = 0; i < 10000; ++i) {
    const double x = a.normal();
    EXPECT_EQ(x, b.normal());
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / 10000, 0.0, 0.05);
  EXPECT_NEAR(squares / 10000, 1.0, 0.05);
}

}  // namespace
}  // namespace recua
