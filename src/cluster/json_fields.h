#pragma once
/// A strict reader of JSON files that people write: every field is bounded, unknown and repeated
/// ones are refused, and errors name the place ("cluster.json: machines[2].count is 0, need a whole
/// number from 1 to 10000").
///
/// The first error is kept and the rest returns defaults, so a caller reads everything and looks at
/// error() once. All errors are kInvalidArgument.

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/result.h"

namespace recua::cluster {

inline constexpr std::size_t kJsonBytesMax = std::size_t{64} << 20;

/// where: the file's name, for messages. Nested at most 16 deep, at most kJsonBytesMax.
Result<nlohmann::json> parse_json(std::string_view text, std::string_view where);

/// What goes wrong while a file is read.
struct JsonErrors {
  std::string where;  // The file.
  std::optional<Error> first = {};

  void add(const std::string& path, const std::string& what);
};

/// The fields of one object. Borrows the value and the errors.
class JsonFields {
 public:
  /// path: "machines[2]"; empty for the whole file.
  JsonFields(const nlohmann::json& value, std::string path, JsonErrors& errors);

  [[nodiscard]] bool has(const char* key);
  [[nodiscard]] double number(const char* key, double least, double most);
  [[nodiscard]] double number_or(const char* key, double otherwise, double least, double most);
  [[nodiscard]] std::uint64_t count(const char* key, std::uint64_t least, std::uint64_t most);
  [[nodiscard]] std::uint64_t count_or(const char* key, std::uint64_t otherwise,
                                       std::uint64_t least, std::uint64_t most);
  [[nodiscard]] bool flag_or(const char* key, bool otherwise);
  /// 1 to 255 bytes without control characters.
  [[nodiscard]] std::string text(const char* key);
  /// The elements; empty after an error. At least one unless `may_be_empty`.
  [[nodiscard]] std::vector<JsonFields> objects(const char* key, std::size_t n_max);
  [[nodiscard]] JsonFields object(const char* key);
  /// Exactly n whole numbers up to most.
  [[nodiscard]] std::vector<std::uint64_t> counts(const char* key, std::size_t n,
                                                  std::uint64_t most);
  /// Exactly n names.
  [[nodiscard]] std::vector<std::string> texts(const char* key, std::size_t n);
  /// Names of fields that nobody asked for yet, for objects whose keys are data.
  [[nodiscard]] std::vector<std::string> keys() const;

  /// Refuses fields that nobody asked for.
  void finish();
  /// "machines[2].count", or the object's own path.
  [[nodiscard]] std::string path_of(const char* key = nullptr) const;
  void fail(const char* key, const std::string& what) { errors_->add(path_of(key), what); }

 private:
  const nlohmann::json* find(const char* key, bool required);
  const nlohmann::json* value_;
  std::string path_;
  JsonErrors* errors_;
  std::set<std::string, std::less<>> asked_;
};

}  // namespace recua::cluster
