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

/// One F32 matrix of 3 chunks and a bit: 3080 rows of 4096 bytes.
struct Matrix {
  std::vector<std::byte> file = random_bytes(100 + 3080 * 4096, 3);
  TensorSpec spec = {.name = "blk.0.w",
                     .n_in = 1024,
                     .n_out = 3080,
                     .bytes = 3080 * 4096,
                     .file = "m.gguf",
                     .offset = 100};
  Matrix() {
    for (std::uint64_t i = 0; i < n_chunks(spec.bytes); ++i)
      spec.chunks.push_back(sha256(chunk(i)));
  }
  [[nodiscard]] std::span<const std::byte> chunk(std::uint64_t i) const {
    return std::span(file).subspan(spec.offset + i * kChunkBytes, chunk_size(spec.bytes, i));
  }
  [[nodiscard]] model::TensorPart part(model::Range rows, model::Range cols = {0, 1024}) const {
    return {.name = spec.name, .n_in = 1024, .n_out = 3080, .rows = rows, .cols = cols};
  }
  /// That source has this part, as if it were cut out of the whole.
  void expect_part(const model::WeightSource& source, const model::TensorPart& part) const {
    const compute::TensorBytes whole = {.name = spec.name,
                                        .type = spec.type,
                                        .n_in = spec.n_in,
                                        .n_out = spec.n_out,
                                        .bytes = std::span(file).subspan(spec.offset, spec.bytes),
                                        .owner = nullptr};
    const auto expected = model::cut_tensor(whole, part);
    const auto found = source.part(part);
    ASSERT_TRUE(expected.ok() && found.ok()) << found.error().message;
    EXPECT_EQ(found->n_in, expected->n_in);
    EXPECT_EQ(found->n_out, expected->n_out);
    ASSERT_EQ(found->bytes.size(), expected->bytes.size());
    EXPECT_EQ(std::memcmp(found->bytes.data(), expected->bytes.data(), found->bytes.size()), 0);
  }
};

TEST(SliceWeights, OfARankAskForTheChunksOfItsPartOnly) {
  const ScratchFolder scratch;
  const Matrix matrix;
  const ChunkHasher hasher(scratch / "cache", 1, false);
  const struct {
    model::TensorPart part;
    std::vector<std::uint32_t> chunks;
  } cases[] = {{matrix.part({1100, 1900}), {1}},
               {matrix.part({0, 1025}), {0, 1}},
               {matrix.part({2048, 3080}), {2, 3}},
               {matrix.part({0, 3080}, {512, 1024}), {0, 1, 2, 3}}};
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    SCOPED_TRACE(i);
    const model::TensorPart& part = cases[i].part;
    const ChunkStore store(scratch / ("cache" + std::to_string(i)));
    const PartOf part_of = [&](const TensorSpec&) { return part; };
    auto weights = SliceWeights::begin({matrix.spec}, {}, hasher, store, {}, part_of);
    ASSERT_TRUE(weights.ok());
    std::vector<std::uint32_t> missing;
    std::uint64_t bytes = 0;
    const std::vector<ChunkRef> refs((*weights)->missing().begin(), (*weights)->missing().end());
    for (const ChunkRef& ref : refs) {
      missing.push_back(ref.chunk);
      bytes += matrix.chunk(ref.chunk).size();
      std::vector<std::byte> wrong(matrix.chunk(ref.chunk).begin(), matrix.chunk(ref.chunk).end());
      wrong.back() ^= std::byte{1};  // In a byte of no interest, too.
      EXPECT_EQ((*weights)->supply(ref, wrong).error().code, ErrorCode::kCorrupt);
      ASSERT_TRUE((*weights)->supply(ref, matrix.chunk(ref.chunk)).ok());
    }
    EXPECT_EQ(missing, cases[i].chunks);
    EXPECT_EQ(needed_bytes(matrix.spec, part), bytes);
    EXPECT_EQ((*weights)->counts().fetched, bytes);
    const auto source = std::move(**weights).finish();
    matrix.expect_part(*source, part);
    EXPECT_TRUE(source->check(part).ok());
    EXPECT_TRUE(source->has("blk.0.w"));
    EXPECT_EQ(source->tensor("blk.0.w").error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(source->part(matrix.part({3, 4})).error().code, ErrorCode::kUnsupported);
    model::TensorPart another_shape = part;
    another_shape.n_in = 512;
    EXPECT_EQ(source->check(another_shape).error().code, ErrorCode::kCorrupt);
    EXPECT_EQ(source->part(another_shape).error().code, ErrorCode::kCorrupt);

    auto again = SliceWeights::begin({matrix.spec}, {}, hasher, store, {}, part_of);
    ASSERT_TRUE(again.ok());
    EXPECT_TRUE((*again)->missing().empty());
    EXPECT_EQ((*again)->counts().from_cache, bytes);
    matrix.expect_part(*std::move(**again).finish(), part);
  }
}

TEST(SliceWeights, OfARankLookAtTheChunksOfItsPartOnly) {
  const ScratchFolder scratch;
  const Matrix matrix;
  std::vector<std::byte> other = matrix.file;
  other[100 + 5] ^= std::byte{1};  // In the first chunk.
  write(scratch / "models/m.gguf", other);
  const ChunkHasher hasher(scratch / "cache", 1, false);
  const auto begin = [&](const model::TensorPart& part, int& n_hashed) {
    return SliceWeights::begin(
        {matrix.spec}, scratch / "models", hasher, ChunkStore(scratch / "cache"),
        [&](std::uint64_t, std::uint64_t) { ++n_hashed; }, [&](const TensorSpec&) { return part; });
  };
  int n_hashed = 0;
  auto upper = begin(matrix.part({1100, 3000}), n_hashed);
  ASSERT_TRUE(upper.ok());
  EXPECT_EQ(n_hashed, 2);
  EXPECT_TRUE((*upper)->missing().empty());
  EXPECT_TRUE((*upper)->differences().empty());
  EXPECT_EQ((*upper)->counts().from_file, 2 * kChunkBytes);
  matrix.expect_part(*std::move(**upper).finish(), matrix.part({1100, 3000}));

  auto lower = begin(matrix.part({0, 1100}), n_hashed);
  ASSERT_TRUE(lower.ok());
  ASSERT_EQ((*lower)->missing().size(), 1u);
  ASSERT_EQ((*lower)->differences().size(), 1u);
  EXPECT_EQ((*lower)->differences()[0].bytes, kChunkBytes);
  EXPECT_EQ(to_string((*lower)->differences()[0]),
            (scratch / "models/m.gguf").string() +
                " is not the coordinator's file of that name: 4.0 MiB of what this slice needs "
                "differ or are missing, first in tensor blk.0.w");
  ASSERT_TRUE((*lower)->supply((*lower)->missing()[0], matrix.chunk(0)).ok());
  EXPECT_EQ((*lower)->counts().from_file, kChunkBytes);
  matrix.expect_part(*std::move(**lower).finish(), matrix.part({0, 1100}));
}

// A peer that lies about a shape: nothing is read or written where it should not be, and loading
// refuses the tensor afterwards.
TEST(SliceWeights, OfARankTakeAPartThatIsEmpty) {
  const ScratchFolder scratch;
  const Matrix matrix;
  const ChunkHasher hasher(scratch / "cache", 1, false);
  auto weights = SliceWeights::begin({matrix.spec}, {}, hasher, ChunkStore(scratch / "cache"), {},
                                     [&](const TensorSpec&) { return matrix.part({3080, 3080}); });
  ASSERT_TRUE(weights.ok());
  EXPECT_TRUE((*weights)->missing().empty());
  const auto source = std::move(**weights).finish();
  EXPECT_FALSE(source->check(model::TensorPart{.name = "blk.0.w", .n_in = 1024, .n_out = 9}).ok());
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
