#include "train/checkpoint.h"

#include <csignal>
#include <cstring>
#include <fstream>
#include <sys/resource.h>

#include <gtest/gtest.h>

#include "base/mapped_file.h"
#include "base/random.h"
#include "base/scratch_folder.h"
#include "train/checkpoint_format.h"

namespace recua::train {
namespace {

namespace fs = std::filesystem;

const std::string kSettings = "layers=2\nlr=0.001\n";

struct Arrays {
  explicit Arrays(std::uint64_t seed, std::size_t n = 1000) : params(n), m(n), v(n) {
    Rng rng(seed);
    for (auto* array : {&params, &m, &v}) {
      for (float& x : *array) x = static_cast<float>(rng.normal());
    }
  }
  AdamState state() { return {.params = params, .m = m, .v = v}; }
  friend bool operator==(const Arrays&, const Arrays&) = default;
  std::vector<float> params, m, v;
};

class CheckpointTest : public ::testing::Test {
 protected:
  static RunPosition at(std::uint64_t step) {
    return {.step = step, .position = 8 * step, .best_loss = 1.5};
  }
  void save(std::uint64_t step) {
    Arrays arrays(step);
    const auto saved = folder_.save(at(step), kSettings, arrays.state());
    ASSERT_TRUE(saved.ok()) << saved.error().message;
  }
  static void damage(const fs::path& path, std::uint64_t offset) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char old = static_cast<char>(file.get());
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(old ^ 0x10));
  }

  ScratchFolder scratch_;
  CheckpointFolder folder_ = CheckpointFolder::open(scratch_ / "run", 3).value();
};

TEST_F(CheckpointTest, ComesBackToTheBitAndKeepsTheNewest) {
  for (const std::uint64_t step : {1U, 2U, 9U, 10U, 200U}) save(step);
  const auto all = folder_.list();
  ASSERT_TRUE(all.ok());
  ASSERT_EQ(all->size(), 3U);
  EXPECT_EQ(all->front().filename(), "checkpoint-0000000009.recua");
  Arrays found(77);
  const auto loaded = folder_.load(kSettings, found.state());
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->run.step, 200U);
  EXPECT_EQ(loaded->run.position, 1600U);
  EXPECT_EQ(loaded->run.best_loss, 1.5);
  EXPECT_TRUE(loaded->skipped.empty());
  EXPECT_EQ(found, Arrays(200));
}

TEST_F(CheckpointTest, NamesACorruptOneAndUsesTheOneBefore) {
  save(1);
  save(2);
  const auto newest = folder_.list()->back();
  const std::uint64_t size = fs::file_size(newest);
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{9}, std::uint64_t{13},
                                     std::uint64_t{30}, std::uint64_t{400}, size / 2, size - 1}) {
    SCOPED_TRACE(offset);
    damage(newest, offset);
    Arrays found(77);
    const auto loaded = folder_.load(kSettings, found.state());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    EXPECT_EQ(loaded->run.step, 1U);
    EXPECT_EQ(found, Arrays(1));
    ASSERT_EQ(loaded->skipped.size(), 1U);
    EXPECT_NE(loaded->skipped[0].find("checkpoint-0000000002"), std::string::npos);
    damage(newest, offset);  // And back.
  }
  Arrays found(77);
  EXPECT_EQ(folder_.load(kSettings, found.state())->run.step, 2U);
  const std::vector<fs::path> all = folder_.list().value();
  for (const fs::path& path : all) fs::resize_file(path, 100);
  const auto none = folder_.load(kSettings, found.state());
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(none.error().message.find("checkpoint-0000000001"), std::string::npos);
}

TEST_F(CheckpointTest, ADamagedNewerOneDrivesNoneOut) {
  save(100);
  damage(folder_.list()->back(), 400);
  for (const std::uint64_t step : {50U, 60U, 70U}) save(step);
  EXPECT_EQ(folder_.list()->size(), 4U);
  Arrays found(77);
  const auto loaded = folder_.load(kSettings, found.state());
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->run.step, 70U);
}

TEST_F(CheckpointTest, RefusesEveryLengthAndEveryFlippedByteOfAHeader) {
  Arrays arrays(4, 5);
  std::vector<std::byte> bytes = checkpoint_header(at(3), kSettings, arrays.state());
  const std::size_t header = bytes.size();
  for (const std::span<const float> array : {arrays.params, arrays.m, arrays.v}) {
    const auto raw = std::as_bytes(array);
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  }
  const auto whole = parse_checkpoint(bytes);
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  EXPECT_EQ(whole->settings, kSettings);
  EXPECT_EQ(whole->header_bytes, header);
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(parse_checkpoint(std::span(bytes).first(n)).ok()) << n;
  }
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= std::byte{0x80};
    EXPECT_FALSE(parse_checkpoint(bytes).ok()) << i;
    bytes[i] ^= std::byte{0x80};
  }
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(parse_checkpoint(bytes).ok());
}

TEST_F(CheckpointTest, RefusesThoseOfAnotherRun) {
  save(1);
  Arrays found(77);
  const auto other = folder_.load("layers=2\nlr=0.002\n", found.state());
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(other.error().message.find("it had lr=0.001, now it is lr=0.002"), std::string::npos)
      << other.error().message;
  EXPECT_EQ(found, Arrays(77));
  const auto empty = CheckpointFolder::open(scratch_ / "empty", 1);
  EXPECT_EQ(empty->load(kSettings, found.state()).error().code, ErrorCode::kNotFound);
}

// A limit on the size of files stands for a disk that is full: write() fails half way.
TEST_F(CheckpointTest, AFullDiskLeavesTheOneBefore) {
  save(1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 5000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  Arrays arrays(2);
  const auto saved = folder_.save(at(2), kSettings, arrays.state());
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(saved.ok());
  EXPECT_EQ(saved.error().code, ErrorCode::kIo);
  EXPECT_NE(saved.error().message.find("checkpoint-0000000002"), std::string::npos);
  std::size_t n_files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder_.path())) ++n_files;
  EXPECT_EQ(n_files, 1U);
  Arrays found(77);
  EXPECT_EQ(folder_.load(kSettings, found.state())->run.step, 1U);
  EXPECT_EQ(found, Arrays(1));
}

TEST_F(CheckpointTest, RemovesWhatAKilledSaveLeft) {
  const fs::path left = folder_.path() / "checkpoint-0000000005.recua.tmp";
  std::ofstream(left) << "half";
  ASSERT_TRUE(CheckpointFolder::open(folder_.path(), 3).ok());
  EXPECT_FALSE(fs::exists(left));
}

}  // namespace
}  // namespace recua::train
