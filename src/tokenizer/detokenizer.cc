#include "tokenizer/detokenizer.h"

#include <utility>

#include "tokenizer/utf8.h"

namespace recua::tokenizer {

std::string Utf8Stream::push(std::string_view bytes) {
  const std::string joined = std::exchange(held_, {}) + std::string(bytes);
  std::string out;
  out.reserve(joined.size());
  for (std::string_view rest = joined; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    if (step.incomplete) {
      held_ = rest;
      break;
    }
    out += step.valid ? rest.substr(0, step.n_bytes) : kReplacement;
    rest.remove_prefix(step.n_bytes);
  }
  return out;
}

std::string Utf8Stream::flush() {
  return std::exchange(held_, {}).empty() ? std::string() : std::string(kReplacement);
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, const DecodeOptions& options)
    : bytes_(tokenizer, options) {}

std::string Detokenizer::push(TokenId id) { return stream_.push(bytes_.next(id)); }

std::string Detokenizer::push(std::span<const TokenId> ids) {
  std::string out;
  for (const TokenId id : ids) out += push(id);
  return out;
}

std::string Detokenizer::flush() { return stream_.flush(); }

}  // namespace recua::tokenizer
