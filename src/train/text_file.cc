#include "train/text_file.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/bytes.h"
#include "cluster/json_fields.h"
#include "tokenizer/utf8.h"

namespace recua::train {
namespace {

constexpr std::string_view kWhiteSpace = " \t\r\n\f\v";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

Error corrupt(std::string message) { return {ErrorCode::kCorrupt, std::move(message)}; }

// Text only: neither zero bytes, which no text has, nor broken characters.
Result<void> check_text(std::string_view text) {
  std::string_view content = text;
  if (content.starts_with(kByteOrderMark)) content.remove_prefix(kByteOrderMark.size());
  if (content.find_first_not_of(kWhiteSpace) == std::string_view::npos)
    return corrupt("there is no text in it");
  if (const std::size_t zero = text.find('\0'); zero != std::string_view::npos) {
    return corrupt(
        fmt::format("byte {} is zero: a binary file; training needs text in UTF-8", zero));
  }
  std::size_t line = 1;
  for (std::size_t at = 0; at < text.size();) {
    const tokenizer::Utf8Step step = tokenizer::utf8_step(text.substr(at));
    if (!step.valid) {
      return corrupt(fmt::format("line {}: byte {} of the file, {:02X}, is not UTF-8", line, at,
                                 static_cast<unsigned char>(text[at])));
    }
    if (text[at] == '\n') ++line;
    at += step.n_bytes;
  }
  return ok();
}

Result<nlohmann::json> parse_object(std::string_view line) {
  auto parsed = cluster::parse_json(line, "not JSON");
  if (!parsed.ok()) {
    std::string what = std::move(parsed.error()).message;
    // The parser counts lines within the one that it was given.
    constexpr std::string_view kInnerLine = "line 1, ";
    if (const std::size_t at = what.find(kInnerLine); at != std::string::npos)
      what.erase(at, kInnerLine.size());
    return corrupt(std::move(what));
  }
  if (!parsed->is_object()) return corrupt("not a JSON object");
  return parsed;
}

// The text of a field that must be there.
Result<std::string> text_field(const nlohmann::json& object, const char* name) {
  const auto field = object.find(name);
  if (field == object.end()) return corrupt(fmt::format("\"{}\" is missing", name));
  if (!field->is_string()) return corrupt(fmt::format("\"{}\" is not a text", name));
  return field->get<std::string>();
}

Result<TextFile::Line> parse_line(std::string_view text) {
  RECUA_ASSIGN_OR_RETURN(const nlohmann::json object, parse_object(text));
  TextFile::Line line;
  RECUA_ASSIGN_OR_RETURN(line.prompt, text_field(object, "prompt"));
  RECUA_ASSIGN_OR_RETURN(line.reply, text_field(object, "reply"));
  if (line.reply.empty()) return corrupt("\"reply\" is empty; there is nothing to learn");
  return line;
}

}  // namespace

Result<TextFile> TextFile::open(const std::filesystem::path& path, DataFormat format) {
  RECUA_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  if (file.bytes().size() > kBytesMax) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("{}: {} bytes, need at most {}: divide it into several files",
                             path.string(), file.bytes().size(), kBytesMax)};
  }
  std::string_view text = as_text(file.bytes());
  if (Result<void> checked = check_text(text); !checked.ok())
    return std::move(checked.error()).within(path.string());
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const bool is_jsonl = format == DataFormat::kJsonl ||
                        (format == DataFormat::kByName && path.extension() == ".jsonl");
  return TextFile(std::move(file), is_jsonl, text);
}

Result<void> TextFile::for_each_line(const LineVisitor& visit) const {
  std::string_view rest = text_;
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (text.find_first_not_of(kWhiteSpace) == std::string_view::npos) continue;
    const Result<Line> line = parse_line(text);
    Result<void> done = line.ok() ? visit(*line) : Result<void>(line.error());
    if (!done.ok()) {
      return std::move(done.error())
          .within(fmt::format("{}: line {}", file_.path().string(), number));
    }
  }
  return ok();
}

}  // namespace recua::train
