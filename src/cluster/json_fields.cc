#include "cluster/json_fields.h"

#include <algorithm>

#include <fmt/format.h>

namespace recua::cluster {
namespace {

using nlohmann::json;

constexpr int kDepthMax = 16;
constexpr std::size_t kTextBytesMax = 255;

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

/// How a value looks in a message.
std::string shown(const json& value) {
  constexpr std::size_t kCharsMax = 40;
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kCharsMax) text = text.substr(0, kCharsMax) + "...";
  return text;
}

bool is_plain_text(const std::string& text) {
  return !text.empty() && text.size() <= kTextBytesMax &&
         std::none_of(text.begin(), text.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 32 || c == 127; });
}

/// A whole number that was written as one, or as 3.0.
std::optional<std::uint64_t> whole(const json& value) {
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const auto number = value.get<double>();
  if (!(number >= 0.0) || number > 9e15) return std::nullopt;
  const auto truncated = static_cast<std::uint64_t>(number);
  if (static_cast<double>(truncated) != number) return std::nullopt;
  return truncated;
}

}  // namespace

Result<json> parse_json(std::string_view text, std::string_view where) {
  if (text.size() > kJsonBytesMax) {
    return invalid(fmt::format("{}: {} bytes, need at most {}", where, text.size(), kJsonBytesMax));
  }
  // The parser itself would let a repeated field win and nest without end.
  std::vector<std::set<std::string, std::less<>>> keys;
  std::string problem;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key && problem.empty()) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        problem = fmt::format("the field {} occurs twice in one object", shown(parsed));
      }
    }
    if (depth > kDepthMax && problem.empty()) {
      problem = fmt::format("nested more than {} deep", kDepthMax);
    }
    return true;
  };
  try {
    json value = json::parse(text.begin(), text.end(), watch);
    if (!problem.empty()) return invalid(fmt::format("{}: {}", where, problem));
    return value;
  } catch (const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string_view what = error.what();
    if (const std::size_t at = what.find("] "); at != std::string_view::npos)
      what.remove_prefix(at + 2);
    return invalid(fmt::format("{}: {}", where, what));
  }
}

void JsonErrors::add(const std::string& path, const std::string& what) {
  if (first) return;
  first = invalid(path.empty() ? fmt::format("{}: {}", where, what)
                               : fmt::format("{}: {} {}", where, path, what));
}

JsonFields::JsonFields(const json& value, std::string path, JsonErrors& errors)
    : value_(&value), path_(std::move(path)), errors_(&errors) {
  static const json kEmpty = json::object();
  if (value.is_object()) return;
  if (!value.is_null() || !errors.first) {
    errors_->add(path_, fmt::format("is {}, need an object in braces", shown(value)));
  }
  value_ = &kEmpty;
}

std::string JsonFields::path_of(const char* key) const {
  if (key == nullptr) return path_;
  return path_.empty() ? key : fmt::format("{}.{}", path_, key);
}

const json* JsonFields::find(const char* key, bool required) {
  asked_.insert(key);
  const auto at = value_->find(key);
  if (at != value_->end()) return &*at;
  if (required) errors_->add(path_of(key), "is missing");
  return nullptr;
}

bool JsonFields::has(const char* key) { return find(key, false) != nullptr; }

double JsonFields::number(const char* key, double least, double most) {
  const json* value = find(key, true);
  if (value == nullptr) return least;
  if (value->is_number()) {
    const auto number = value->get<double>();
    if (number >= least && number <= most) return number;
  }
  fail(key, fmt::format("is {}, need a number from {} to {}", shown(*value), least, most));
  return least;
}

double JsonFields::number_or(const char* key, double otherwise, double least, double most) {
  return has(key) ? number(key, least, most) : otherwise;
}

std::uint64_t JsonFields::count(const char* key, std::uint64_t least, std::uint64_t most) {
  const json* value = find(key, true);
  if (value == nullptr) return least;
  const auto number = whole(*value);
  if (number && *number >= least && *number <= most) return *number;
  fail(key, fmt::format("is {}, need a whole number from {} to {}", shown(*value), least, most));
  return least;
}

std::uint64_t JsonFields::count_or(const char* key, std::uint64_t otherwise, std::uint64_t least,
                                   std::uint64_t most) {
  return has(key) ? count(key, least, most) : otherwise;
}

bool JsonFields::flag_or(const char* key, bool otherwise) {
  const json* value = find(key, false);
  if (value == nullptr) return otherwise;
  if (value->is_boolean()) return value->get<bool>();
  fail(key, fmt::format("is {}, need true or false", shown(*value)));
  return otherwise;
}

std::string JsonFields::text(const char* key) {
  const json* value = find(key, true);
  if (value == nullptr) return {};
  if (value->is_string() && is_plain_text(value->get_ref<const std::string&>())) {
    return value->get<std::string>();
  }
  fail(key, fmt::format("is {}, need a text of 1 to {} bytes", shown(*value), kTextBytesMax));
  return {};
}

std::vector<JsonFields> JsonFields::objects(const char* key, std::size_t n_max) {
  const json* value = find(key, true);
  if (value == nullptr) return {};
  if (!value->is_array() || value->empty() || value->size() > n_max) {
    fail(key, fmt::format(
                  "is {}, need an array of 1 to {} objects",
                  value->is_array() ? fmt::format("an array of {}", value->size()) : shown(*value),
                  n_max));
    return {};
  }
  std::vector<JsonFields> out;
  for (std::size_t i = 0; i < value->size(); ++i) {
    out.emplace_back((*value)[i], fmt::format("{}[{}]", path_of(key), i), *errors_);
  }
  return out;
}

JsonFields JsonFields::object(const char* key) {
  static const json kNull;
  const json* value = find(key, true);
  return {value == nullptr ? kNull : *value, path_of(key), *errors_};
}

std::vector<std::uint64_t> JsonFields::counts(const char* key, std::size_t n, std::uint64_t most) {
  std::vector<std::uint64_t> out(n, 0);
  const json* value = find(key, true);
  if (value == nullptr) return out;
  bool right = value->is_array() && value->size() == n;
  for (std::size_t i = 0; right && i < n; ++i) {
    const auto number = whole((*value)[i]);
    right = number && *number <= most;
    if (right) out[i] = *number;
  }
  if (!right) fail(key, fmt::format("needs {} whole numbers from 0 to {} in brackets", n, most));
  return out;
}

std::vector<std::string> JsonFields::texts(const char* key, std::size_t n) {
  std::vector<std::string> out(n);
  const json* value = find(key, true);
  if (value == nullptr) return out;
  bool right = value->is_array() && value->size() == n;
  for (std::size_t i = 0; right && i < n; ++i) {
    right = (*value)[i].is_string() && is_plain_text((*value)[i].get_ref<const std::string&>());
    if (right) out[i] = (*value)[i].get<std::string>();
  }
  if (!right) fail(key, fmt::format("needs {} names in brackets", n));
  return out;
}

std::vector<std::string> JsonFields::keys() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : value_->items()) {
    if (!asked_.contains(key)) out.push_back(key);
  }
  return out;
}

void JsonFields::finish() {
  const std::vector<std::string> unknown = keys();
  if (unknown.empty()) return;
  std::string known;
  for (const std::string& key : asked_) known += (known.empty() ? "" : ", ") + key;
  errors_->add(path_of(unknown.front().c_str()),
               fmt::format("is not a field that is known here; those are: {}", known));
}

}  // namespace recua::cluster
