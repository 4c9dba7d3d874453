// The file of measured speeds: {"recua_speeds": 2, "entries": [{"host", "version", "n_threads",
// "width", "bytes_per_second", ..., "types": [{"type", ...}]}]}, the newest entry last.
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
constexpr std::uint64_t kVersion = 2;  // 1: of one width, without saying so.

struct Entry {
  SpeedKey key;
  MachineSpeed speed;
};

bool same(const SpeedKey& a, const SpeedKey& b) {
  return a.host == b.host && a.version == b.version && a.n_threads == b.n_threads &&
         a.width == b.width;
}

Entry read_entry(JsonFields& fields) {
  Entry out;
  out.key.host = fields.text("host");
  out.key.version = fields.text("version");
  out.key.n_threads = static_cast<std::uint32_t>(fields.count("n_threads", 1, 65536));
  out.key.width = static_cast<std::uint32_t>(fields.count("width", 1, 1 << 20));
  out.speed.bytes_per_second = fields.number("bytes_per_second", 1.0, kSpeedMax);
  out.speed.macs_per_second = fields.number("macs_per_second", 1.0, kSpeedMax);
  out.speed.attention_macs_per_second = fields.number("attention_macs_per_second", 1.0, kSpeedMax);
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
          {"width", entry.key.width},
          {"bytes_per_second", entry.speed.bytes_per_second},
          {"macs_per_second", entry.speed.macs_per_second},
          {"attention_macs_per_second", entry.speed.attention_macs_per_second},
          {"operator_seconds", entry.speed.operator_seconds},
          {"types", std::move(types)}};
}

}  // namespace

std::optional<MachineSpeed> load_speed(const std::filesystem::path& file, const SpeedKey& key,
                                       std::span<const quant::DataType> types) {
  for (const Entry& entry : read_entries(file)) {
    if (!same(entry.key, key)) continue;
    const bool has_all = std::all_of(types.begin(), types.end(), [&](quant::DataType type) {
      return std::any_of(entry.speed.by_type.begin(), entry.speed.by_type.end(),
                         [type](const TypeSpeed& known) { return known.type == type; });
    });
    if (has_all) return entry.speed;
  }
  return std::nullopt;
}

Result<void> store_speed(const std::filesystem::path& file, const SpeedKey& key,
                         const MachineSpeed& speed) {
  std::vector<Entry> entries = read_entries(file);
  Entry mine = {.key = key, .speed = speed};
  for (const Entry& entry : entries) {
    if (!same(entry.key, key)) continue;
    // Types that another model needed stay.
    for (const TypeSpeed& type : entry.speed.by_type) {
      const bool is_new = std::none_of(mine.speed.by_type.begin(), mine.speed.by_type.end(),
                                       [&](const TypeSpeed& own) { return own.type == type.type; });
      if (is_new) mine.speed.by_type.push_back(type);
    }
  }
  std::erase_if(entries, [&](const Entry& entry) { return same(entry.key, key); });
  if (entries.size() >= kEntriesMax) entries.erase(entries.begin());
  entries.push_back(std::move(mine));
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
