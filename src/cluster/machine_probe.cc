#include "cluster/machine_probe.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>

#include "base/random.h"
#include "quant/quantize.h"
#include "sys/thread_pool.h"

namespace recua::cluster {
namespace {

using Clock = std::chrono::steady_clock;
using compute::Rows;

constexpr std::size_t kManyTokens = 128;
constexpr std::size_t kManyWeights = std::size_t{1} << 22;

constexpr std::size_t kHeads = 32;
constexpr std::size_t kKvHeads = 8;
constexpr std::size_t kHeadDim = 128;
constexpr std::size_t kContext = 1024;
constexpr std::size_t kQueries = 96;  // As many as a prompt gives to a thread at a time.
constexpr double kMacsPerQuery = 2.0 * kHeads * kHeadDim * kContext;

// Smallest products that the CPU device gives to all threads.
constexpr std::size_t kSmallWidth = 128;

constexpr int kRunsMin = 3;

// Whatever else goes on only makes a measurement slower, and comes in bursts: so everything is
// measured several times, apart from each other, and the best counts.
constexpr int kPasses = 4;

// A call that takes so long is long enough to be exact, and no other is needed. Products and
// attention are made smaller for machines that would take longer (emulated ones take minutes).
constexpr double kCallSecondsMax = 0.25;
// No other pass after so much time: nothing short was measured.
constexpr double kAllSecondsMax = 5.0;
constexpr std::size_t kRowsMin = 64;
constexpr std::size_t kQueriesMin = 8;

/// Memory to stream from. In a file where models lie it has the pages that theirs have, which makes
/// a difference: with small pages of its own, decode of 1.2 B weights as Q4_0 was predicted a fifth
/// too slow on a kernel that maps files in larger ones, with huge pages up to 16 % too fast.
class Memory {
 public:
  static Result<Memory> map(const std::filesystem::path& folder, std::size_t n_bytes) {
    const int file = open_scratch_file(folder, n_bytes);
    const int kind = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void* const data = ::mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, kind, file, 0);
    if (file >= 0) ::close(file);
    if (data == MAP_FAILED) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("no {} bytes of memory to measure speed with", n_bytes)};
    }
    // Without a file: small pages come nearest. Kernels without large ones refuse to be told.
    if (file < 0) ::madvise(data, n_bytes, MADV_NOHUGEPAGE);
    return Memory({static_cast<std::byte*>(data), n_bytes});
  }
  Memory(Memory&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Memory& operator=(Memory&&) = delete;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
  }
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  explicit Memory(std::span<std::byte> bytes) : bytes_(bytes) {}

  /// A written file without a name, which goes with its last mapping; below 0: not there.
  static int open_scratch_file(const std::filesystem::path& folder, std::size_t n_bytes) {
    if (folder.empty()) return -1;
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) return -1;
    const std::vector<std::byte> ones(std::size_t{1} << 20, std::byte{1});
    for (std::size_t done = 0; done < n_bytes;) {
      const ssize_t n = ::write(file, ones.data(), std::min(ones.size(), n_bytes - done));
      if (n <= 0) {  // A full disk, say.
        ::close(file);
        return -1;
      }
      done += static_cast<std::size_t>(n);
    }
    return file;
  }

  std::span<std::byte> bytes_;
};

/// The median time of a call, in seconds; repeated until enough time has passed.
double median_seconds(std::chrono::duration<double> at_least, const std::function<void()>& call) {
  const auto timed = [&call] {
    const auto before = Clock::now();
    call();
    return std::chrono::duration<double>(Clock::now() - before).count();
  };
  // Caches, page tables and scratch memory.
  if (const double first = timed(); first > kCallSecondsMax) return first;
  std::vector<double> times;
  const auto begin = Clock::now();
  while (times.size() < kRunsMin || Clock::now() - begin < at_least) times.push_back(timed());
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

double read_bytes_per_second(const MachineProbeOptions& options, std::span<const std::byte> bytes) {
  sys::ThreadPool pool(options.n_threads);
  std::vector<std::uint64_t> sums(options.n_threads * 8, 0);  // A cache line each.
  const double seconds = median_seconds(options.duration_each, [&] {
    pool.run([&](std::size_t thread, std::size_t n_threads) {
      constexpr std::size_t kStep = 64;
      const sys::Partition part = sys::partition(bytes.size(), thread, n_threads, kStep);
      std::uint64_t sum[8] = {};
      for (std::size_t at = part.begin; at + kStep <= part.end; at += kStep) {
        std::uint64_t words[8];
        std::memcpy(words, bytes.data() + at, kStep);
        for (int i = 0; i < 8; ++i) sum[i] += words[i];
      }
      for (const std::uint64_t s : sum) sums[thread * 8] += s;
    });
  });
  // The sums are looked at, so that nobody leaves the loop away.
  std::uint64_t all = 0;
  for (const std::uint64_t s : sums) all ^= s;
  return static_cast<double>(bytes.size()) / (all == 1 ? seconds * 1.000001 : seconds);
}

/// A buffer of random rows.
Result<std::unique_ptr<compute::Buffer>> random_rows(compute::Device& device, std::size_t n) {
  RECUA_ASSIGN_OR_RETURN(auto buffer, device.allocate(n * sizeof(float)));
  if (buffer->host() == nullptr) {
    return Error{ErrorCode::kUnsupported, "this device's memory cannot be filled from here"};
  }
  Rng rng(1);
  for (std::size_t i = 0; i < n; ++i) {
    const auto value = static_cast<float>(rng.normal());
    std::memcpy(buffer->host() + i * sizeof(float), &value, sizeof(float));
  }
  return buffer;
}

/// Rows of one type that repeat one random row: what they hold does not matter to a product, but
/// numbers that are none would.
Result<std::unique_ptr<compute::Weight>> weight_of(compute::Device& device, quant::DataType type,
                                                   std::size_t n_in, std::size_t n_out,
                                                   std::span<std::byte> memory) {
  Rng rng(2);
  std::vector<float> row(n_in);
  for (float& value : row) value = static_cast<float>(rng.normal());
  const std::size_t row_bytes = quant::row_bytes(type, n_in);
  std::vector<std::byte> stored(row_bytes);
  quant::quantize_row(type, row.data(), n_in, stored.data());
  for (std::size_t r = 0; r < n_out; ++r) {
    std::memcpy(memory.data() + r * row_bytes, stored.data(), row_bytes);
  }
  return device.load_weight({.name = "probe",
                             .type = type,
                             .n_in = n_in,
                             .n_out = n_out,
                             .n_experts = 1,
                             .bytes = memory.first(n_out * row_bytes),
                             .owner = nullptr});
}

Result<TypeSpeed> probe_type(compute::Device& device, const MachineProbeOptions& options,
                             quant::DataType type, std::span<std::byte> memory) {
  const std::size_t width = options.width;
  const std::size_t n_rows = memory.size() / quant::row_bytes(type, width);
  RECUA_ASSIGN_OR_RETURN(const auto x, random_rows(device, kManyTokens * width));
  RECUA_ASSIGN_OR_RETURN(
      const auto out,
      device.allocate(std::max(n_rows, kManyTokens * kManyWeights / width) * sizeof(float)));
  TypeSpeed speed = {.type = type};
  {
    RECUA_ASSIGN_OR_RETURN(const auto weight, weight_of(device, type, width, n_rows, memory));
    const double seconds = median_seconds(options.duration_each, [&] {
      device.matmul(*weight, compute::dense_rows(*x, 1, width),
                    compute::dense_rows(*out, 1, n_rows));
      device.sync();
    });
    speed.decode_macs_per_second = static_cast<double>(n_rows * width) / seconds;
  }
  // Many tokens are at least as fast per weight as one.
  const double affordable =
      speed.decode_macs_per_second * kCallSecondsMax / static_cast<double>(kManyTokens * width);
  const std::size_t n_many = std::min(
      {n_rows, kManyWeights / width, std::max(kRowsMin, static_cast<std::size_t>(affordable))});
  RECUA_ASSIGN_OR_RETURN(const auto weight, weight_of(device, type, width, n_many, memory));
  const double seconds = median_seconds(options.duration_each, [&] {
    device.matmul(*weight, compute::dense_rows(*x, kManyTokens, width),
                  compute::dense_rows(*out, kManyTokens, n_many));
    device.sync();
  });
  speed.macs_per_second = static_cast<double>(kManyTokens * n_many * width) / seconds;
  return speed;
}

/// Of n_queries last tokens of one sequence.
Result<double> probe_attention(compute::Device& device, const MachineProbeOptions& options,
                               std::size_t n_queries) {
  compute::KvLayer layer = {.buffer = nullptr,
                            .offset = 0,
                            .page_stride = 0,
                            .n_pages = 1,
                            .page_tokens = kContext,
                            .n_kv_heads = kKvHeads,
                            .head_dim = kHeadDim,
                            .k_type = quant::DataType::kF16,
                            .v_type = quant::DataType::kF16};
  layer.page_stride = layer.page_bytes();
  RECUA_ASSIGN_OR_RETURN(const auto cache, device.allocate(layer.page_stride));
  if (cache->host() != nullptr) std::memset(cache->host(), 0, layer.page_stride);
  layer.buffer = cache.get();
  constexpr std::size_t kCols = kHeads * kHeadDim;
  RECUA_ASSIGN_OR_RETURN(const auto q, random_rows(device, n_queries * kCols));
  RECUA_ASSIGN_OR_RETURN(const auto out, device.allocate(n_queries * kCols * sizeof(float)));
  std::vector<compute::AttentionRow> rows;
  for (std::size_t position = kContext - n_queries; position < kContext; ++position) {
    rows.push_back({.sequence = 0, .position = static_cast<std::uint32_t>(position)});
  }
  const std::uint32_t page = 0;
  const std::span<const std::uint32_t> table(&page, 1);
  const compute::AttentionBatch batch = {.rows = rows, .page_tables = {&table, 1}};
  const compute::HeadGroups heads{.n_heads = kHeads, .n_group = kHeads / kKvHeads};
  const double seconds = median_seconds(options.duration_each, [&] {
    device.attention(layer, compute::dense_rows(*q, n_queries, kCols), heads, batch, 0.1F, 0,
                     compute::dense_rows(*out, n_queries, kCols));
    device.sync();
  });
  return static_cast<double>(n_queries) * kMacsPerQuery / seconds;
}

Result<double> probe_operator(compute::Device& device, const MachineProbeOptions& options) {
  std::vector<std::byte> memory(kSmallWidth * kSmallWidth * sizeof(float));
  RECUA_ASSIGN_OR_RETURN(const auto weight, weight_of(device, quant::DataType::kF32, kSmallWidth,
                                                      kSmallWidth, memory));
  RECUA_ASSIGN_OR_RETURN(const auto x, random_rows(device, kSmallWidth));
  RECUA_ASSIGN_OR_RETURN(const auto out, device.allocate(kSmallWidth * sizeof(float)));
  constexpr int kCalls = 100;  // The clock itself takes tens of nanoseconds.
  const double seconds = median_seconds(options.duration_each, [&] {
    for (int i = 0; i < kCalls; ++i) {
      device.matmul(*weight, compute::dense_rows(*x, 1, kSmallWidth),
                    compute::dense_rows(*out, 1, kSmallWidth));
    }
    device.sync();
  });
  return seconds / kCalls;
}

/// The better of two measurements, figure by figure.
void keep_best(MachineSpeed& best, const MachineSpeed& other) {
  best.bytes_per_second = std::max(best.bytes_per_second, other.bytes_per_second);
  for (std::size_t i = 0; i < best.by_type.size(); ++i) {
    TypeSpeed& own = best.by_type[i];
    const TypeSpeed& type = other.by_type[i];
    own.macs_per_second = std::max(own.macs_per_second, type.macs_per_second);
    own.decode_macs_per_second = std::max(own.decode_macs_per_second, type.decode_macs_per_second);
  }
  best.attention_macs_per_second =
      std::max(best.attention_macs_per_second, other.attention_macs_per_second);
  best.attention_decode_macs_per_second =
      std::max(best.attention_decode_macs_per_second, other.attention_decode_macs_per_second);
  best.operator_seconds = std::min(best.operator_seconds, other.operator_seconds);
}

Result<MachineSpeed> probe_once(compute::Device& device, const MachineProbeOptions& options,
                                std::span<std::byte> bytes) {
  MachineSpeed speed;
  speed.bytes_per_second = read_bytes_per_second(options, bytes);
  for (const quant::DataType type : options.types) {
    RECUA_ASSIGN_OR_RETURN(const TypeSpeed own, probe_type(device, options, type, bytes));
    speed.by_type.push_back(own);
  }
  RECUA_ASSIGN_OR_RETURN(speed.attention_decode_macs_per_second,
                         probe_attention(device, options, 1));
  const auto affordable = static_cast<std::size_t>(speed.attention_decode_macs_per_second *
                                                   kCallSecondsMax / kMacsPerQuery);
  RECUA_ASSIGN_OR_RETURN(
      speed.attention_macs_per_second,
      probe_attention(device, options, std::clamp(affordable, kQueriesMin, kQueries)));
  RECUA_ASSIGN_OR_RETURN(speed.operator_seconds, probe_operator(device, options));
  return speed;
}

}  // namespace

Result<MachineSpeed> probe_machine(compute::Device& device, const MachineProbeOptions& options) {
  RECUA_CHECK(!options.types.empty() && options.n_threads >= 1 && options.width % 256 == 0 &&
              options.width > 0 && options.width <= kManyWeights);
  RECUA_ASSIGN_OR_RETURN(const Memory memory, Memory::map(options.folder, options.bytes_streamed));
  std::memset(memory.bytes().data(), 1, memory.bytes().size());  // So that pages are there.
  MachineProbeOptions pass = options;
  pass.duration_each = options.duration_each / kPasses;
  const auto begin = Clock::now();
  const std::chrono::duration<double> enough(kAllSecondsMax);
  RECUA_ASSIGN_OR_RETURN(MachineSpeed best, probe_once(device, pass, memory.bytes()));
  for (int i = 1; i < kPasses && Clock::now() - begin < enough; ++i) {
    RECUA_ASSIGN_OR_RETURN(const MachineSpeed other, probe_once(device, pass, memory.bytes()));
    keep_best(best, other);
  }
  best.macs_per_second = best.by_type.front().macs_per_second;
  return best;
}

}  // namespace recua::cluster
