// The file of measured speeds: {"recua_speeds": 3, "entries": [{"host", "version", "n_threads",
// "model", "bytes_per_second", ..., "types": [{"type", ...}]}]}, the newest entry last.
#include <algorithm>
#include <system_error>

#include <fmt/format.h>

#include "base/bytes.h"
#include "base/mapped_file.h"
#include "cluster/json_fields.h"
#include "cluster/machine_probe.h"

namespace recua::cluster {
namespace {

constexpr std::size_t kFileBytesMax = std::size_t{1} << 20;
constexpr std::size_t kEntriesMax = 64;
constexpr double kSpeedMax = 1e18;
constexpr std::uint64_t kVersion = 3;  // 2: by the width of matrices only; 1: of one width.

struct Entry {
  SpeedKey key;
  MachineSpeed speed;
};

Entry read_entry(JsonFields& fields) {
  Entry out;
  out.key.host = fields.text("host");
  out.key.version = fields.text("version");
  out.key.n_threads = static_cast<std::uint32_t>(fields.count("n_threads", 1, 65536));
  out.key.model = fields.text("model");
  out.speed.bytes_per_second = fields.number("bytes_per_second", 1.0, kSpeedMax);
  out.speed.macs_per_second = fields.number("macs_per_second", 1.0, kSpeedMax);
  out.speed.attention_macs_per_second = fields.number("attention_macs_per_second", 1.0, kSpeedMax);
  out.speed.attention_decode_macs_per_second =
      fields.number_or("attention_decode_macs_per_second", 0.0, 0.0, kSpeedMax);
  out.speed.operator_seconds = fields.number("operator_seconds", 0.0, 1.0);
  for (JsonFields& type : fields.objects("types", quant::kAllDataTypes.size())) {
    const auto known = quant::data_type_from_name(type.text("type"));
    if (!known) type.fail("type", "is unknown");
    out.speed.by_type.push_back(
        {.type = known.value_or(quant::DataType::kF32),
         .macs_per_second = type.number("macs_per_second", 1.0, kSpeedMax),
         .decode_macs_per_second = type.number("decode_macs_per_second", 1.0, kSpeedMax)});
  }
  return out;
}

/// Empty when the file is not there or is not as we write it: then it is measured anew.
std::vector<Entry> read_entries(const std::filesystem::path& file) {
  const auto text = read_file(file, kFileBytesMax);
  if (!text.ok()) return {};
  const auto value = parse_json(*text, file.string());
  if (!value.ok()) return {};
  JsonErrors errors = {.where = file.string()};
  JsonFields fields(*value, "", errors);
  static_cast<void>(fields.count("recua_speeds", kVersion, kVersion));
  std::vector<Entry> out;
  for (JsonFields& entry : fields.objects("entries", kEntriesMax)) {
    out.push_back(read_entry(entry));
  }
  return errors.first ? std::vector<Entry>{} : out;
}

nlohmann::ordered_json entry_json(const Entry& entry) {
  nlohmann::ordered_json types = nlohmann::ordered_json::array();
  for (const TypeSpeed& type : entry.speed.by_type) {
    types.push_back({{"type", quant::traits(type.type).name},
                     {"macs_per_second", type.macs_per_second},
                     {"decode_macs_per_second", type.decode_macs_per_second}});
  }
  return {{"host", entry.key.host},
          {"version", entry.key.version},
          {"n_threads", entry.key.n_threads},
          {"model", entry.key.model},
          {"bytes_per_second", entry.speed.bytes_per_second},
          {"macs_per_second", entry.speed.macs_per_second},
          {"attention_macs_per_second", entry.speed.attention_macs_per_second},
          {"attention_decode_macs_per_second", entry.speed.attention_decode_macs_per_second},
          {"operator_seconds", entry.speed.operator_seconds},
          {"types", std::move(types)}};
}

}  // namespace

std::optional<MachineSpeed> load_speed(const std::filesystem::path& file, const SpeedKey& key) {
  for (const Entry& entry : read_entries(file)) {
    if (entry.key == key) return entry.speed;
  }
  return std::nullopt;
}

Result<void> store_speed(const std::filesystem::path& file, const SpeedKey& key,
                         const MachineSpeed& speed) {
  std::vector<Entry> entries = read_entries(file);
  std::erase_if(entries, [&](const Entry& entry) { return entry.key == key; });
  if (entries.size() >= kEntriesMax) entries.erase(entries.begin());
  entries.push_back({.key = key, .speed = speed});
  nlohmann::ordered_json out;
  out["recua_speeds"] = kVersion;
  out["entries"] = nlohmann::ordered_json::array();
  for (const Entry& entry : entries) out["entries"].push_back(entry_json(entry));
  const std::string text =
      out.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  std::error_code error;
  std::filesystem::create_directories(file.parent_path(), error);
  return write_file_atomically(file, as_bytes(text), Durability::kMayBeLost);
}

}  // namespace recua::cluster
