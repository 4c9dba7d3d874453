// What is in a GGUF file: metadata, tensors, and how many weights of which type.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "cli/backend.h"
#include "cli/commands.h"
#include "cli/memory_estimate.h"
#include "cli/units.h"
#include "gguf/gguf_file.h"
#include "model/hyperparams.h"
#include "sys/memory.h"

namespace recua::cli {
namespace {

using gguf::GgufFile;
using gguf::TensorInfo;
using nlohmann::ordered_json;

constexpr std::size_t kValueChars = 70;      // Of a value in the table.
constexpr std::uint64_t kJsonElements = 16;  // Of an array in JSON, without --full.

struct InspectFlags {
  std::string file;
  bool json = false;
  bool tensors = false;
  bool full = false;
  bool memory = false;
  ModelFlags model =
      {};  // Of these, what takes memory: the context, batches, cache types, threads.
  std::uint32_t n_parallel = 1;
};

struct TypeTotal {
  std::uint64_t n_tensors = 0;
  std::uint64_t n_elements = 0;
  std::uint64_t n_bytes = 0;
};

/// By type, in the order of quant::kAllDataTypes.
std::vector<std::pair<quant::DataType, TypeTotal>> totals_by_type(const GgufFile& file) {
  std::vector<std::pair<quant::DataType, TypeTotal>> out;
  for (const quant::DataType type : quant::kAllDataTypes) {
    TypeTotal total;
    for (const TensorInfo& tensor : file.tensors()) {
      if (tensor.type != type) continue;
      ++total.n_tensors;
      total.n_elements += tensor.n_elements;
      total.n_bytes += tensor.n_bytes;
    }
    if (total.n_tensors > 0) out.emplace_back(type, total);
  }
  return out;
}

TypeTotal whole(const GgufFile& file) {
  TypeTotal out;
  for (const auto& [type, total] : totals_by_type(file)) {
    out.n_tensors += total.n_tensors;
    out.n_elements += total.n_elements;
    out.n_bytes += total.n_bytes;
  }
  return out;
}

std::uint64_t file_bytes(const GgufFile& file) {
  std::uint64_t out = 0;
  for (std::size_t i = 0; i < file.n_shards(); ++i) out += file.shard_bytes(i).size();
  return out;
}

double bits_per_weight(const TypeTotal& total) {
  if (total.n_elements == 0) return 0.0;
  return 8.0 * static_cast<double>(total.n_bytes) / static_cast<double>(total.n_elements);
}

/// A key as it may stand on a terminal: as it is, when it is plain.
std::string plain(std::string_view key) {
  const bool is_plain = std::ranges::all_of(key, [](char c) { return c > ' ' && c <= '~'; });
  return is_plain ? std::string(key) : gguf::quoted(key);
}

void print_metadata(const GgufFile& file) {
  std::size_t key_width = 0;
  std::size_t type_width = 0;
  for (const auto& [key, value] : file.metadata()) {
    key_width = std::max(key_width, std::min<std::size_t>(plain(key).size(), 48));
    type_width = std::max(type_width, describe_type(value).size());
  }
  fmt::print("\nmetadata ({})\n", file.metadata().size());
  for (const auto& [key, value] : file.metadata()) {
    fmt::print("  {:{}}  {:{}}  {}\n", plain(key), key_width, describe_type(value), type_width,
               gguf::to_text(value, kValueChars));
  }
}

void print_tensors(const GgufFile& file) {
  std::size_t name_width = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    name_width = std::max(name_width, plain(tensor.name).size());
  }
  fmt::print("\ntensors ({}), shapes with the row length first\n", file.tensors().size());
  for (const TensorInfo& tensor : file.tensors()) {
    fmt::print("  {:{}}  {:4}  {:>22}  {:>9}  at {}", plain(tensor.name), name_width,
               quant::traits(tensor.type).name, tensor.shape_text(), human_bytes(tensor.n_bytes),
               tensor.offset);
    if (file.n_shards() > 1) fmt::print(" of file {}", tensor.shard + 1);
    fmt::print("\n");
  }
}

void print_totals(const GgufFile& file) {
  const TypeTotal all = whole(file);
  fmt::print("\ntypes\n");
  for (const auto& [type, total] : totals_by_type(file)) {
    fmt::print("  {:4}  {:5} tensors  {:>9} weights  {:>9}  {:5.1f} %\n", quant::traits(type).name,
               total.n_tensors, human_count(total.n_elements), human_bytes(total.n_bytes),
               100.0 * static_cast<double>(total.n_bytes) / static_cast<double>(all.n_bytes));
  }
  fmt::print("  all   {:5} tensors  {:>9} weights  {:>9}  {:.2f} bits per weight\n", all.n_tensors,
             human_count(all.n_elements), human_bytes(all.n_bytes), bits_per_weight(all));
}

void print_text(const GgufFile& file, const InspectFlags& flags) {
  fmt::print("{}: GGUF version {}, {}, alignment {}\n", file.name(), file.version(),
             human_bytes(file_bytes(file)), file.alignment());
  for (std::size_t i = 1; i < file.n_shards(); ++i) fmt::print("{}\n", file.shard_name(i));
  print_metadata(file);
  if (flags.tensors) print_tensors(file);
  if (file.tensors().empty()) {
    fmt::print("\nno tensors (a vocabulary, perhaps)\n");
  } else {
    print_totals(file);
  }
}

template <class T>
void append_numbers(const gguf::Array& array, std::uint64_t n, ordered_json& out) {
  ByteReader reader(array.bytes);
  for (std::uint64_t i = 0; i < n; ++i) out.push_back(reader.read<T>().value_or(T{}));
}

ordered_json array_json(const gguf::Array& array, bool full) {
  const std::uint64_t n = full ? array.n : std::min(array.n, kJsonElements);
  ordered_json out = ordered_json::array();
  using gguf::ValueType;
  switch (array.element_type) {
    case ValueType::kU8:
      append_numbers<std::uint8_t>(array, n, out);
      break;
    case ValueType::kI8:
      append_numbers<std::int8_t>(array, n, out);
      break;
    case ValueType::kU16:
      append_numbers<std::uint16_t>(array, n, out);
      break;
    case ValueType::kI16:
      append_numbers<std::int16_t>(array, n, out);
      break;
    case ValueType::kU32:
      append_numbers<std::uint32_t>(array, n, out);
      break;
    case ValueType::kI32:
      append_numbers<std::int32_t>(array, n, out);
      break;
    case ValueType::kU64:
      append_numbers<std::uint64_t>(array, n, out);
      break;
    case ValueType::kI64:
      append_numbers<std::int64_t>(array, n, out);
      break;
    case ValueType::kF32:
      append_numbers<float>(array, n, out);
      break;
    case ValueType::kF64:
      append_numbers<double>(array, n, out);
      break;
    case ValueType::kBool: {
      ByteReader reader(array.bytes);
      for (std::uint64_t i = 0; i < n; ++i)
        out.push_back(reader.read<std::uint8_t>().value_or(0) == 1);
      break;
    }
    case ValueType::kString: {
      ByteReader reader(array.bytes);
      for (std::uint64_t i = 0; i < n; ++i) {
        const std::uint64_t length = reader.read<std::uint64_t>().value_or(0);
        out.push_back(
            std::string(as_text(reader.take(length).value_or(std::span<const std::byte>{}))));
      }
      break;
    }
    case ValueType::kArray:
      break;  // The reader refuses arrays of arrays.
  }
  return out;
}

ordered_json value_json(const gguf::Value& value, bool full) {
  ordered_json out;
  out["type"] = gguf::to_string(gguf::type_of(value));
  std::visit(
      [&out, full](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, gguf::Array>) {
          out["element_type"] = gguf::to_string(v.element_type);
          out["length"] = v.n;
          out["value"] = array_json(v, full);
        } else if constexpr (std::is_same_v<T, std::string_view>) {
          out["value"] = std::string(v);
        } else {
          out["value"] = v;
        }
      },
      value);
  return out;
}

ordered_json total_json(const TypeTotal& total) {
  ordered_json out;
  out["n_tensors"] = total.n_tensors;
  out["n_weights"] = total.n_elements;
  out["n_bytes"] = total.n_bytes;
  return out;
}

Result<MemoryEstimate> memory_of(const GgufFile& file, const InspectFlags& flags) {
  RECUA_ASSIGN_OR_RETURN(const model::HyperParams hyperparams, model::read_hyperparams(file));
  RECUA_ASSIGN_OR_RETURN(const model::SliceOptions options,
                         choose_options(flags.model, {.n_ctx = {}, .n_sequences = flags.n_parallel},
                                        hyperparams.n_ctx_train));
  return estimate_memory(file, hyperparams, options, choose_threads(flags.model),
                         flags.model.repack, true);
}

void print_memory(const MemoryEstimate& need) {
  fmt::print("\nmemory to run it, with a context of {}\n", need.n_ctx);
  const auto line = [](std::string_view what, std::uint64_t bytes) {
    fmt::print("  {:<16}  {:>9}\n", what, human_bytes(bytes));
  };
  line("weights, packed", need.packed);
  line("weights, mapped", need.mapped);
  line("cache", need.cache);
  line("activations", need.activations);
  line("scratch", need.scratch);
  line("program", need.program);
  line("all", need.total());
  line("free now", sys::memory_info().available_bytes);
}

ordered_json memory_json(const MemoryEstimate& need) {
  ordered_json out;
  out["n_ctx"] = need.n_ctx;
  out["packed"] = need.packed;
  out["mapped"] = need.mapped;
  out["cache"] = need.cache;
  out["activations"] = need.activations;
  out["scratch"] = need.scratch;
  out["program"] = need.program;
  out["total"] = need.total();
  out["available"] = sys::memory_info().available_bytes;
  return out;
}

void print_json(const GgufFile& file, const InspectFlags& flags, const MemoryEstimate* need) {
  ordered_json out;
  out["file"] = file.name();
  out["version"] = file.version();
  out["alignment"] = file.alignment();
  out["file_bytes"] = file_bytes(file);
  out["files"] = ordered_json::array();
  for (std::size_t i = 0; i < file.n_shards(); ++i) out["files"].push_back(file.shard_name(i));
  out["metadata"] = ordered_json::object();
  for (const auto& [key, value] : file.metadata()) {
    out["metadata"][std::string(key)] = value_json(value, flags.full);
  }
  out["tensors"] = ordered_json::array();
  for (const TensorInfo& tensor : file.tensors()) {
    ordered_json info;
    info["name"] = std::string(tensor.name);
    info["type"] = quant::traits(tensor.type).name;
    info["shape"] = std::vector<std::uint64_t>(
        tensor.shape.begin(), tensor.shape.begin() + static_cast<std::ptrdiff_t>(tensor.n_dims));
    info["n_bytes"] = tensor.n_bytes;
    info["file"] = tensor.shard;
    info["offset"] = tensor.offset;
    out["tensors"].push_back(std::move(info));
  }
  out["types"] = ordered_json::object();
  for (const auto& [type, total] : totals_by_type(file)) {
    out["types"][std::string(quant::traits(type).name)] = total_json(total);
  }
  const TypeTotal all = whole(file);
  out["total"] = total_json(all);
  out["total"]["bits_per_weight"] = bits_per_weight(all);
  if (need != nullptr) out["memory"] = memory_json(*need);
  // Strings of a vocabulary need not be UTF-8: U+FFFD stands for what is not.
  fmt::print("{}\n", out.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
}

int inspect(const InspectFlags& flags) {
  if (flags.file.empty()) return report(missing("FILE", "the GGUF file to look into"));
  const auto file = GgufFile::open(flags.file);
  if (!file.ok()) return report(file.error());
  std::optional<MemoryEstimate> need;
  if (flags.memory) {
    ModelFlags model = flags.model;
    model.model = flags.file;
    if (const auto checked = model.check(); !checked.ok()) return report(checked.error());
    if (flags.n_parallel == 0 || flags.n_parallel > 65536) {
      return report(
          {ErrorCode::kInvalidArgument,
           fmt::format("--parallel is {}, need a number from 1 to 65536", flags.n_parallel)});
    }
    auto estimate = memory_of(*file, flags);
    if (!estimate.ok()) return report(estimate.error());
    need = *estimate;
  }
  if (flags.json) {
    print_json(*file, flags, need ? &*need : nullptr);
  } else {
    print_text(*file, flags);
    if (need) print_memory(*need);
  }
  return kExitOk;
}

}  // namespace

void register_inspect(CLI::App& app, int& exit_code) {
  auto* const sub = app.add_subcommand("inspect", "Show the metadata and tensors of a GGUF file");
  const auto flags = std::make_shared<InspectFlags>();
  sub->add_option("FILE,-m,--model", flags->file, "The model (any part of a split one)");
  sub->add_flag("--tensors", flags->tensors, "List every tensor");
  sub->add_flag("--json", flags->json, "Print one JSON object (tensors always, arrays cut to 16)");
  sub->add_flag("--full", flags->full, "With --json: whole arrays, such as the vocabulary");
  sub->add_flag("--memory", flags->memory,
                "The memory that running it takes here, with these flags of `recua run`:");
  flags->model.add_sizes(*sub, true);
  sub->add_option("--parallel", flags->n_parallel, "Sequences of that length; also -np")
      ->capture_default_str()
      ->type_name("N");
  sub->footer(
      "Examples:\n"
      "  recua inspect model.gguf\n"
      "  recua inspect model.gguf --tensors\n"
      "  recua inspect model.gguf --memory -c 32768\n"
      "  recua inspect model.gguf --json | jq '.metadata[\"general.architecture\"].value'");
  sub->callback([flags, &exit_code] { exit_code = inspect(*flags); });
}

}  // namespace recua::cli
