#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/random.h"
#include "sys/aligned_buffer.h"
#include "sys/cpu_features.h"
#include "sys/machine_peak.h"
#include "sys/thread_pool.h"
#include "sys/topology.h"

namespace recua::sys {
namespace {

TEST(Partition, CoversEveryItemOnceInOrderAndCutsAtGranules) {
  Rng rng(1);
  for (int round = 0; round < 2000; ++round) {
    const auto n_items = static_cast<std::size_t>(rng.below(500));
    const auto n_threads = static_cast<std::size_t>(1 + rng.below(9));
    const auto granularity = static_cast<std::size_t>(1 + rng.below(33));
    std::size_t next = 0;
    for (std::size_t t = 0; t < n_threads; ++t) {
      const Partition part = partition(n_items, t, n_threads, granularity);
      ASSERT_EQ(part.begin, next);
      ASSERT_LE(part.begin, part.end);
      ASSERT_TRUE(part.begin % granularity == 0 || part.empty());
      next = part.end;
    }
    ASSERT_EQ(next, n_items) << n_items << " items, " << n_threads << " threads, " << granularity;
  }
}

TEST(ThreadPool, RunsTheFunctionOnceOnEveryThread) {
  for (std::size_t n = 1; n <= 6; ++n) {
    ThreadPool pool(n);
    EXPECT_EQ(pool.n_threads(), n);
    for (int round = 0; round < 200; ++round) {
      std::vector<int> calls(n, 0);
      pool.run([&](std::size_t thread, std::size_t n_threads) {
        ASSERT_EQ(n_threads, n);
        ++calls[thread];
      });
      ASSERT_EQ(calls, std::vector<int>(n, 1));
    }
  }
}

TEST(ThreadPool, SeesWhatTheLastJobWrote) {
  ThreadPool pool(3);
  std::vector<std::uint64_t> values(999, 1);
  for (int round = 0; round < 500; ++round) {
    // Each round reads its neighbour's share of the round before.
    std::vector<std::uint64_t> next(values.size());
    pool.run([&](std::size_t thread, std::size_t n_threads) {
      const Partition part = partition(values.size(), thread, n_threads);
      for (std::size_t i = part.begin; i < part.end; ++i) {
        next[i] = values[(i + 333) % values.size()] + 1;
      }
    });
    values = next;
  }
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), std::uint64_t{0}), 999U * 501U);
}

TEST(ThreadPool, WorksAfterItsThreadsWentToSleep) {
  ThreadPool pool(4);
  std::atomic<int> calls = 0;
  for (int round = 0; round < 5; ++round) {
    pool.run([&](std::size_t, std::size_t) { calls.fetch_add(1); });
    // Longer than the spin time; asserts nothing about time, only makes the sleeping path likely.
    std::atomic<std::uint64_t> sink = 0;
    for (int i = 0; i < 300000; ++i) sink.fetch_add(1, std::memory_order_relaxed);
  }
  EXPECT_EQ(calls.load(), 20);
}

TEST(ThreadPool, EndsWithoutEverRunning) {
  for (int round = 0; round < 50; ++round) ThreadPool pool(5);
}

TEST(AlignedBuffer, IsAlignedZeroedAndMovable) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{63}, std::size_t{4096},
                                 std::size_t{(2 << 20) - 1}, std::size_t{(2 << 20) + 5}}) {
    Result<AlignedBuffer> made = AlignedBuffer::allocate(size);
    ASSERT_TRUE(made.ok());
    AlignedBuffer buffer = std::move(made).value();
    ASSERT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % AlignedBuffer::kAlignment, 0U);
    for (const std::byte b : buffer.bytes()) ASSERT_EQ(b, std::byte{0});
    buffer.data()[size - 1] = std::byte{7};
    AlignedBuffer moved = std::move(buffer);
    EXPECT_EQ(moved.data()[size - 1], std::byte{7});
  }
}

TEST(AlignedBuffer, SaysHowMuchItCouldNotGet) {
  const Result<AlignedBuffer> result = AlignedBuffer::allocate(SIZE_MAX - 1);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(result.error().message.find("18446744073709551614 bytes"), std::string::npos);
}

TEST(CpuFeatures, ChoosesByNameAndExplainsWhatIsWrong) {
  EXPECT_EQ(choose_instruction_set("scalar").value(), InstructionSet::kScalar);
  const Result<InstructionSet> wrong = choose_instruction_set("mmx");
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(wrong.error().message.find("\"mmx\" is unknown; use one of: auto, scalar"),
            std::string::npos)
      << wrong.error().message;
}

TEST(CpuFeatures, ASetThatThisCpuLacksIsRefusedAndItIsSaidWhatCanBeHad) {
  // The last ones are those of another architecture.
  std::vector<InstructionSet> sets(all_instruction_sets().begin(), all_instruction_sets().end());
  sets.insert(sets.end(), {InstructionSet::kAvx512, InstructionSet::kI8mm});
  for (const InstructionSet set : sets) {
    const Result<InstructionSet> chosen = choose_instruction_set(to_string(set));
    ASSERT_EQ(chosen.ok(), supported(set)) << to_string(set);
    if (chosen.ok()) continue;
    EXPECT_EQ(chosen.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(chosen.error().message.find("it can run: auto, scalar"), std::string::npos)
        << chosen.error().message;
  }
}

// The kernel takes names from its list that it does not support itself, registers that it does not
// save among them. So this list is what we must find by our own look at CPUID and XGETBV, or by the
// bits that it gives a program.
TEST(CpuFeatures, FindsWhatTheOperatingSystemLists) {
#if defined(__aarch64__)
  const std::string key = "Features";
#else
  const std::string key = "flags";
#endif
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> flags;
  for (std::string line; flags.empty() && std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) flags.insert(word);
  }
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo has no " << key;
  const auto has = [&](std::initializer_list<const char*> names) {
    return std::ranges::all_of(names, [&](const char* name) { return flags.contains(name); });
  };
  const bool avx2 = has({"avx2", "fma", "f16c"});
  EXPECT_EQ(supported(InstructionSet::kAvx2), avx2);
  EXPECT_EQ(supported(InstructionSet::kAvx512),
            avx2 && has({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}));
  EXPECT_EQ(supported(InstructionSet::kNeon), has({"asimd"}));
  EXPECT_EQ(supported(InstructionSet::kDotprod), has({"asimd", "asimddp"}));
  EXPECT_EQ(supported(InstructionSet::kI8mm), has({"asimd", "asimddp", "i8mm"}));
}

TEST(CpuFeatures, AutoObeysTheEnvironment) {
  ASSERT_EQ(setenv("RECUA_INSTRUCTION_SET", "scalar", 1), 0);
  EXPECT_EQ(choose_instruction_set("auto").value(), InstructionSet::kScalar);
  ASSERT_EQ(setenv("RECUA_INSTRUCTION_SET", "nonsense", 1), 0);
  EXPECT_FALSE(choose_instruction_set("auto").ok());
  ASSERT_EQ(unsetenv("RECUA_INSTRUCTION_SET"), 0);
  EXPECT_EQ(choose_instruction_set("auto").value(), supported_instruction_sets().back());
}

TEST(Topology, HasAtLeastOneCoreAndNoMoreCoresThanCpus) {
  const Topology topology = detect_topology();
  EXPECT_GE(topology.n_cores, 1U);
  EXPECT_LE(topology.n_cores, topology.n_cpus);
  EXPECT_EQ(default_thread_count(topology), topology.n_cores);
}

// How fast they are is the machine's business; that there is a figure, and that the loops are run,
// is ours.
TEST(MachinePeak, HasAFigureForEverySequenceThatThisCpuHas) {
  ThreadPool pool(2);
  for (const MultiplyAdd sequence :
       {MultiplyAdd::kFma256, MultiplyAdd::kFma512, MultiplyAdd::kBytesBy4, MultiplyAdd::kBytesBy8,
        MultiplyAdd::kWords256, MultiplyAdd::kDotBytes512}) {
    if (!supported(sequence)) continue;
    const double rate = multiply_adds_per_second(sequence, pool, std::chrono::milliseconds(1));
    EXPECT_GT(rate, 1e6) << static_cast<int>(sequence);  // A loop that was left away: far above.
    EXPECT_LT(rate, 1e14) << static_cast<int>(sequence);
  }
}

TEST(MachinePeak, ReadsBytesThatDoNotDivideIntoLines) {
  ThreadPool pool(2);
  const std::vector<std::byte> bytes(100003, std::byte{1});
  const double rate = read_bytes_per_second(bytes, pool, std::chrono::milliseconds(1));
  EXPECT_GT(rate, 1e6);
  EXPECT_LT(rate, 1e14);
}

}  // namespace
}  // namespace recua::sys
