#pragma once
/// A file of text to learn from: checked once, then mapped and read in place.

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "base/mapped_file.h"
#include "base/result.h"

namespace recua::train {

enum class DataFormat {
  kByName,  // JSONL for names that end in .jsonl, plain text for all others.
  kText,
  kJsonl,  // One JSON object a line, with the texts "prompt" and "reply".
};

class TextFile {
 public:
  static constexpr std::size_t kBytesMax = std::size_t{1} << 30;

  /// kNotFound, kIo: the file. kCorrupt: no text, a binary file, not UTF-8. kResourceExhausted:
  /// more than kBytesMax. All name the file and, where there is one, the line (from 1) and byte
  /// (from 0).
  static Result<TextFile> open(const std::filesystem::path& path, DataFormat format);

  [[nodiscard]] bool is_jsonl() const { return is_jsonl_; }
  /// Valid UTF-8, not only white space, without a byte order mark. Lives as long as the object.
  [[nodiscard]] std::string_view text() const { return text_; }

  struct Line {
    std::string prompt;
    std::string reply;  // Not empty.
  };
  using LineVisitor = std::function<Result<void>(const Line&)>;
  /// For JSONL: every line that is not empty, in order. Fields of other names are ignored.
  /// kCorrupt: a line that is no JSON object, or has no prompt or reply; and whatever visit
  /// returns. All name the file and the line.
  Result<void> for_each_line(const LineVisitor& visit) const;

 private:
  TextFile(MappedFile file, bool is_jsonl, std::string_view text)
      : file_(std::move(file)), is_jsonl_(is_jsonl), text_(text) {}

  MappedFile file_;
  bool is_jsonl_;
  std::string_view text_;
};

}  // namespace recua::train
