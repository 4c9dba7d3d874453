#include "cluster/machine_probe.h"

#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "base/scratch_folder.h"
#include "compute/cpu/cpu_device.h"

namespace recua::cluster {
namespace {

using quant::DataType;

TEST(MachineProbe, MeasuresWhatAModelNeeds) {
  const auto device = compute::make_cpu_device({.n_threads = 1});
  ASSERT_TRUE(device.ok());
  const auto speed = probe_machine(**device, {.n_threads = 1,
                                              .types = {DataType::kQ8_0, DataType::kQ4_K},
                                              .duration_each = std::chrono::milliseconds(1),
                                              .bytes_streamed = std::size_t{8} << 20});
  ASSERT_TRUE(speed.ok()) << speed.error().message;
  EXPECT_GT(speed->bytes_per_second, 0.0);
  ASSERT_EQ(speed->by_type.size(), 2u);
  EXPECT_EQ(speed->by_type[1].type, DataType::kQ4_K);
  for (const TypeSpeed& type : speed->by_type) {
    EXPECT_GT(type.macs_per_second, 0.0);
    EXPECT_GT(type.decode_macs_per_second, 0.0);
  }
  EXPECT_EQ(speed->macs_per_second, speed->by_type[0].macs_per_second);
  EXPECT_GT(speed->attention_macs_per_second, 0.0);
  EXPECT_GT(speed->attention_decode_macs_per_second, 0.0);
  EXPECT_GT(speed->operator_seconds, 0.0);
}

MachineSpeed some_speed(std::vector<TypeSpeed> types, double factor) {
  return {.bytes_per_second = factor * 1e10,
          .macs_per_second = factor * 1e11,
          .by_type = std::move(types),
          .attention_macs_per_second = 1e10,
          .operator_seconds = 1e-6};
}

TEST(SpeedFile, RemembersPerHostThreadsVersionAndModel) {
  const ScratchFolder folder;
  const auto file = folder.path() / "new" / "speeds.json";
  const SpeedKey key = {.host = "a", .version = "1", .n_threads = 4, .model = "small"};
  EXPECT_FALSE(load_speed(file, key));
  const MachineSpeed speed = some_speed({{DataType::kQ4_K, 1e11, 1e10}}, 1.0);
  ASSERT_TRUE(store_speed(file, key, speed).ok());
  EXPECT_EQ(load_speed(file, key), speed);
  for (const SpeedKey& other : {SpeedKey{"b", "1", 4, "small"}, SpeedKey{"a", "2", 4, "small"},
                                SpeedKey{"a", "1", 2, "small"}, SpeedKey{"a", "1", 4, "larger"}}) {
    EXPECT_FALSE(load_speed(file, other));
  }
  const MachineSpeed later = some_speed({{DataType::kF16, 2e11, 2e10}}, 2.0);
  ASSERT_TRUE(store_speed(file, key, later).ok());
  EXPECT_EQ(load_speed(file, key), later);
}

TEST(SpeedFile, StartsAnewWhenTheFileIsBroken) {
  const ScratchFolder folder;
  const auto file = folder.path() / "speeds.json";
  const SpeedKey key = {.host = "a", .version = "1", .n_threads = 4, .model = "small"};
  const MachineSpeed speed = some_speed({{DataType::kQ4_K, 1e11, 1e10}}, 1.0);
  for (const char* text : {"", "{", "[]", "{\"recua_speeds\": 2}",
                           "{\"recua_speeds\": 3, \"entries\": [{\"host\": 3}]}"}) {
    ASSERT_TRUE(write_file_atomically(file, as_bytes(std::string_view(text))).ok());
    EXPECT_FALSE(load_speed(file, key));
    ASSERT_TRUE(store_speed(file, key, speed).ok());
    EXPECT_EQ(load_speed(file, key), speed);
  }
  for (std::uint32_t n = 1; n <= 70; ++n) {
    ASSERT_TRUE(
        store_speed(file, {.host = "a", .version = "1", .n_threads = n, .model = "small"}, speed)
            .ok());
  }
  EXPECT_FALSE(load_speed(file, {.host = "a", .version = "1", .n_threads = 1, .model = "small"}));
  EXPECT_TRUE(load_speed(file, {.host = "a", .version = "1", .n_threads = 70, .model = "small"}));
}

}  // namespace
}  // namespace recua::cluster
