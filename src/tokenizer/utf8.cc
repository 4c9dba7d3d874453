#include "tokenizer/utf8.h"

#include "base/check.h"

namespace recua::tokenizer {
namespace {

// What table 3-7 says of a lead byte: how long its sequences are and the range of the second byte.
// All later bytes are 80..BF. n_bytes 0: no sequence begins so.
struct Lead {
  std::size_t n_bytes;
  unsigned char second_min;
  unsigned char second_max;
};

Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};  // Shorter forms exist for what is below.
  if (byte == 0xED) return {3, 0x80, 0x9F};  // Surrogates are above.
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};  // U+10FFFF is the last.
  return {0, 0, 0};
}

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  RECUA_DCHECK(!text.empty());
  const auto byte_at = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte_at(0);
  if (first < 0x80) return {.code_point = first, .n_bytes = 1, .valid = true};
  const Lead lead = lead_of(first);
  if (lead.n_bytes == 0) return {.code_point = 0xFFFD};

  char32_t code_point = first & (0x7Fu >> lead.n_bytes);
  for (std::size_t i = 1; i < lead.n_bytes; ++i) {
    if (i == text.size()) return {.code_point = 0xFFFD, .n_bytes = i, .incomplete = true};
    const unsigned char byte = byte_at(i);
    const unsigned char min = i == 1 ? lead.second_min : 0x80;
    const unsigned char max = i == 1 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {.code_point = 0xFFFD, .n_bytes = i};
    code_point = code_point << 6 | (byte & 0x3Fu);
  }
  return {.code_point = code_point, .n_bytes = lead.n_bytes, .valid = true};
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (!step.valid) return false;
    text.remove_prefix(step.n_bytes);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    out += step.valid ? text.substr(0, step.n_bytes) : kReplacement;
    text.remove_prefix(step.n_bytes);
  }
  return out;
}

void append_utf8(char32_t code_point, std::string& out) {
  const auto put = [&out](char32_t byte) { out += static_cast<char>(byte); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace recua::tokenizer
