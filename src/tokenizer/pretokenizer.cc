// The expressions run in PCRE2, compiled to machine code where the system allows that and
// interpreted where it does not (systems that forbid writable, executable memory).
#include "tokenizer/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pcre2.h>

#include "base/log.h"
#include "tokenizer/pretokenizer_schemes.h"

namespace recua::tokenizer {
namespace {

template <auto kFree>
struct Pcre2Deleter {
  template <class T>
  void operator()(T* object) const noexcept {
    kFree(object);
  }
};
using UniqueCode = std::unique_ptr<pcre2_code, Pcre2Deleter<pcre2_code_free>>;
using UniqueMatch = std::unique_ptr<pcre2_match_data, Pcre2Deleter<pcre2_match_data_free>>;
using UniqueMatchContext =
    std::unique_ptr<pcre2_match_context, Pcre2Deleter<pcre2_match_context_free>>;

// White_Space of Unicode 15. PCRE2's own \s adds U+180E, which is no space since Unicode 6.3.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

// Writes \s and \S out, inside a bracketed class (\s only) and outside.
std::string expand_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out += in_class ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
      } else if (escaped == 'S') {
        out += fmt::format("[^{}]", kWhiteSpace);
      } else {
        out += {c, escaped};
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

}  // namespace

class Pretokenizer::Expression {
 public:
  static Result<Expression> compile(std::string_view pattern) {
    const std::string expanded = expand_white_space(pattern);
    int error = 0;
    PCRE2_SIZE error_offset = 0;
    UniqueCode code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expanded.data()), expanded.size(),
                                  PCRE2_UTF, &error, &error_offset, nullptr));
    if (!code) {
      PCRE2_UCHAR text[256] = {};
      pcre2_get_error_message(error, text, sizeof text);
      return Error{
          ErrorCode::kUnsupported,
          fmt::format("the installed PCRE2 library refuses the pre-tokenizer expression at "
                      "offset {}: {}; it must be built with Unicode support",
                      error_offset, reinterpret_cast<const char*>(text))};
    }
    if (pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE) != 0) {
      log_debug("no memory may be both written and run: pre-tokenizer expressions are interpreted");
    }
    // The default limit on steps is for hostile patterns; ours are linear in the text.
    UniqueMatchContext context(pcre2_match_context_create(nullptr));
    if (!context) throw std::bad_alloc();
    pcre2_set_match_limit(context.get(), std::numeric_limits<std::uint32_t>::max());
    return Expression(std::move(code), std::move(context));
  }

  void split(std::string_view text, std::vector<std::string_view>& words) const {
    const UniqueMatch match(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (!match) throw std::bad_alloc();
    std::size_t end = 0;  // Of the last word.
    while (end < text.size() && find(text, end, match.get())) {
      const PCRE2_SIZE* const range = pcre2_get_ovector_pointer(match.get());
      if (range[1] == range[0]) break;  // No expression of ours matches nothing.
      if (range[0] > end) words.push_back(text.substr(end, range[0] - end));
      words.push_back(text.substr(range[0], range[1] - range[0]));
      end = range[1];
    }
    if (end < text.size()) words.push_back(text.substr(end));
  }

 private:
  Expression(UniqueCode code, UniqueMatchContext context)
      : code_(std::move(code)), context_(std::move(context)) {}

  bool find(std::string_view text, std::size_t from, pcre2_match_data* match) const {
    const auto run = [&](std::uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                         PCRE2_NO_UTF_CHECK | options, match, context_.get());
    };
    int found = run(0);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = run(PCRE2_NO_JIT);
    if (found >= 0) return true;
    if (found != PCRE2_ERROR_NOMATCH) throw std::bad_alloc();
    return false;
  }

  UniqueCode code_;
  UniqueMatchContext context_;
};

Pretokenizer::Pretokenizer(std::vector<Expression> expressions, const PretokenizerTraits& traits)
    : expressions_(std::move(expressions)), traits_(traits) {}
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;
Pretokenizer& Pretokenizer::operator=(Pretokenizer&&) noexcept = default;
Pretokenizer::~Pretokenizer() = default;

Result<Pretokenizer> Pretokenizer::create(std::string_view name) {
  const auto* const scheme = std::ranges::find(kSchemes, name, &Scheme::name);
  if (scheme == std::end(kSchemes)) {
    return Error{ErrorCode::kUnsupported,
                 fmt::format("tokenizer.ggml.pre is {:?}, which recua does not know, and any other "
                             "way to split text would give wrong ids; known are: {}",
                             name.substr(0, 80), fmt::join(known_pretokenizers(), ", "))};
  }
  std::vector<Expression> expressions;
  for (const std::string_view pattern : scheme->expressions) {
    if (pattern.empty()) continue;
    RECUA_ASSIGN_OR_RETURN(Expression expression, Expression::compile(pattern));
    expressions.push_back(std::move(expression));
  }
  return Pretokenizer(std::move(expressions), scheme->traits);
}

std::vector<std::string_view> Pretokenizer::split(std::string_view text) const {
  std::vector<std::string_view> words;
  if (!text.empty()) words.push_back(text);
  for (const Expression& expression : expressions_) {
    std::vector<std::string_view> smaller;
    for (const std::string_view word : words) expression.split(word, smaller);
    words = std::move(smaller);
  }
  return words;
}

std::vector<std::string_view> known_pretokenizers() {
  std::vector<std::string_view> names;
  for (const Scheme& scheme : kSchemes) names.push_back(scheme.name);
  std::ranges::sort(names);
  return names;
}

}  // namespace recua::tokenizer
