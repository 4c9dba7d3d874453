#include "tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "tokenizer/utf8.h"

namespace recua::tokenizer {
namespace {

constexpr bool is_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::size_t kAlphabetEnd = 0x100 + 68;  // One past the last code point in use.

struct Alphabet {
  std::array<char16_t, 256> point_of_byte{};
  std::array<std::int16_t, kAlphabetEnd> byte_of_point{};  // -1: not of the alphabet.
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte_of_point.fill(-1);
  unsigned next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const unsigned point = is_itself(byte) ? byte : next++;
    alphabet.point_of_byte[byte] = static_cast<char16_t>(point);
    alphabet.byte_of_point[point] = static_cast<std::int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();
static_assert(kAlphabet.point_of_byte[' '] == 0x120 && kAlphabet.point_of_byte['\n'] == 0x10A);
static_assert(kAlphabet.byte_of_point[kAlphabetEnd - 1] == 0xAD);

}  // namespace

std::string from_byte_level(std::string_view written) {
  std::string out;
  out.reserve(written.size());
  while (!written.empty()) {
    const Utf8Step step = utf8_step(written);
    const bool known = step.valid && step.code_point < kAlphabetEnd &&
                       kAlphabet.byte_of_point[step.code_point] >= 0;
    if (known) {
      out += static_cast<char>(kAlphabet.byte_of_point[step.code_point]);
    } else {
      out += written.substr(0, step.n_bytes);
    }
    written.remove_prefix(step.n_bytes);
  }
  return out;
}

std::string to_byte_level(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (const char c : bytes)
    append_utf8(kAlphabet.point_of_byte[static_cast<unsigned char>(c)], out);
  return out;
}

}  // namespace recua::tokenizer
