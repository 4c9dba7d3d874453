// Chunks and the three places that weights come from.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/random.h"
#include "base/scratch_folder.h"
#include "cluster/chunks.h"
#include "cluster/slice_weights.h"

namespace recua::cluster {
namespace {

namespace fs = std::filesystem;

std::vector<std::byte> random_bytes(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next() & 255);
  return bytes;
}

void write(const fs::path& path, std::span<const std::byte> bytes) {
  fs::create_directories(path.parent_path());
  ASSERT_TRUE(write_file_atomically(path, bytes).ok());
}

/// Two F32 tensors in one file, the second longer than a chunk.
struct Model {
  std::vector<std::byte> file = random_bytes(100 + 4096 + kChunkBytes + 8192, 1);
  std::vector<TensorSpec> specs = {
      {.name = "a", .n_in = 1024, .n_out = 1, .bytes = 4096, .file = "m.gguf", .offset = 100},
      {.name = "b",
       .n_in = 1024,
       .n_out = (kChunkBytes + 8192) / 4096,
       .bytes = kChunkBytes + 8192,
       .file = "m.gguf",
       .offset = 4196}};

  Model() {
    for (TensorSpec& spec : specs) {
      for (std::uint64_t i = 0; i < n_chunks(spec.bytes); ++i) {
        spec.chunks.push_back(sha256(chunk(spec, i)));
      }
    }
  }
  [[nodiscard]] std::span<const std::byte> chunk(const TensorSpec& spec, std::uint64_t i) const {
    return std::span(file).subspan(spec.offset + i * kChunkBytes, chunk_size(spec.bytes, i));
  }
  void expect_served_by(const model::WeightSource& source) const {
    for (const TensorSpec& spec : specs) {
      const auto tensor = source.tensor(spec.name);
      ASSERT_TRUE(tensor.ok());
      ASSERT_EQ(tensor->bytes.size(), spec.bytes);
      EXPECT_EQ(std::memcmp(tensor->bytes.data(), file.data() + spec.offset, spec.bytes), 0);
    }
    EXPECT_FALSE(source.has("c"));
    EXPECT_EQ(source.tensor("c").error().code, ErrorCode::kNotFound);
  }
};

TEST(ChunkHasher, RemembersWhatItHashedUntilTheFileChanges) {
  const ScratchFolder scratch;
  Model model;
  write(scratch / "m.gguf", model.file);
  const std::vector<FileRange> ranges = {{100, 4096}, {4196, kChunkBytes + 8192}};
  int n_calls = 0;
  const HashProgress count = [&](std::uint64_t, std::uint64_t) { ++n_calls; };
  const ChunkHasher hasher(scratch / "cache", 2, false);
  const auto first = hasher.hash(scratch / "m.gguf", model.file, ranges, count);
  EXPECT_EQ(n_calls, 3);
  EXPECT_EQ(first[0], model.specs[0].chunks);
  EXPECT_EQ(first[1], model.specs[1].chunks);
  EXPECT_EQ(hasher.hash(scratch / "m.gguf", model.file, ranges, count), first);
  EXPECT_EQ(n_calls, 3);
  const ChunkHasher forgetful(scratch / "cache", 2, true);
  EXPECT_EQ(forgetful.hash(scratch / "m.gguf", model.file, ranges, count), first);
  EXPECT_EQ(n_calls, 6);
  model.file[200] ^= std::byte{1};
  write(scratch / "m.gguf", model.file);
  EXPECT_NE(hasher.hash(scratch / "m.gguf", model.file, ranges, count)[0], first[0]);
}

TEST(ChunkStore, KeepsChunksAndRemovesDamagedOnes) {
  const ScratchFolder scratch;
  const ChunkStore store(scratch / "cache");
  const std::vector<std::byte> bytes = random_bytes(1000, 2);
  const Digest digest = sha256(bytes);
  std::vector<std::byte> out(1000);
  EXPECT_FALSE(store.load(digest, out));
  ASSERT_TRUE(store.save(digest, bytes).ok());
  EXPECT_TRUE(store.load(digest, out));
  EXPECT_EQ(out, bytes);
  const fs::path path = scratch / "cache" / "chunks" / to_hex(digest).substr(0, 2) / to_hex(digest);
  std::ofstream(path, std::ios::app) << "x";
  EXPECT_FALSE(store.load(digest, out));
  EXPECT_FALSE(fs::exists(path));
}

TEST(SliceWeights, UsesTheWorkersOwnFileWhereItIs) {
  const ScratchFolder scratch;
  const Model model;
  write(scratch / "models/m.gguf", model.file);
  const ChunkHasher hasher(scratch / "cache", 2, false);
  auto weights =
      SliceWeights::begin(model.specs, scratch / "models", hasher, ChunkStore(scratch / "cache"));
  ASSERT_TRUE(weights.ok());
  EXPECT_TRUE((*weights)->missing().empty());
  EXPECT_EQ((*weights)->counts().from_file, 4096 + kChunkBytes + 8192);
  model.expect_served_by(*std::move(**weights).finish());
}

TEST(SliceWeights, FetchesOnlyTheChunksThatDiffer) {
  const ScratchFolder scratch;
  const Model model;
  std::vector<std::byte> other = model.file;
  other[4196 + kChunkBytes + 5] ^= std::byte{1};  // In the second chunk of b.
  write(scratch / "models/m.gguf", other);
  const ChunkHasher hasher(scratch / "cache", 1, false);
  auto weights =
      SliceWeights::begin(model.specs, scratch / "models", hasher, ChunkStore(scratch / "cache"));
  ASSERT_TRUE(weights.ok());
  ASSERT_EQ((*weights)->missing().size(), 1u);
  const ChunkRef ref = (*weights)->missing()[0];
  EXPECT_EQ(ref.tensor, 1u);
  EXPECT_EQ(ref.chunk, 1u);

  const auto wrong = (*weights)->supply(ref, random_bytes(8192, 9));
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(wrong.error().message.find("tensor b"), std::string::npos);
  ASSERT_TRUE((*weights)->supply(ref, model.chunk(model.specs[1], 1)).ok());
  EXPECT_EQ((*weights)->counts().fetched, 8192u);
  model.expect_served_by(*std::move(**weights).finish());

  // The next time it is in the cache.
  auto again =
      SliceWeights::begin(model.specs, scratch / "models", hasher, ChunkStore(scratch / "cache"));
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE((*again)->missing().empty());
  EXPECT_EQ((*again)->counts().from_cache, 8192u);
  model.expect_served_by(*std::move(**again).finish());
}

TEST(SliceWeights, NeedsEverythingWithoutAFileOrWithATruncatedOne) {
  const ScratchFolder scratch;
  const Model model;
  const ChunkHasher hasher(scratch / "cache", 1, false);
  auto none = SliceWeights::begin(model.specs, {}, hasher, ChunkStore(scratch / "cache"));
  ASSERT_TRUE(none.ok());
  EXPECT_EQ((*none)->missing().size(), 3u);
  write(scratch / "models/m.gguf", std::span(model.file).first(4196 + 100));
  auto truncated =
      SliceWeights::begin(model.specs, scratch / "models", hasher, ChunkStore(scratch / "cache"));
  ASSERT_TRUE(truncated.ok());
  EXPECT_EQ((*truncated)->missing().size(), 2u);  // Tensor a is whole.
}

TEST(CheckSpec, RefusesWhatCannotBeRight) {
  const Model model;
  const TensorSpec good = model.specs[1];
  ASSERT_TRUE(check_spec(good).ok());
  const auto refused = [&](auto change) {
    TensorSpec spec = good;
    change(spec);
    const auto result = check_spec(spec);
    return !result.ok() && result.error().code == ErrorCode::kProtocol &&
           result.error().message.find("tensor b") != std::string::npos;
  };
  EXPECT_TRUE(refused([](TensorSpec& s) { s.file = "../m.gguf"; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.file = ".."; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.file = ""; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.n_in = 0; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.type = quant::DataType::kQ4_K, s.n_in = 100; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.n_out = std::uint64_t{1} << 63; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.bytes += 1; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.offset = ~std::uint64_t{0}; }));
  EXPECT_TRUE(refused([](TensorSpec& s) { s.chunks.pop_back(); }));
}

}  // namespace
}  // namespace recua::cluster
