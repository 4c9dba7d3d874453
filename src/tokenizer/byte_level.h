#pragma once
/// The alphabet in which byte-level BPE vocabularies are written down.
///
/// Each of the 256 bytes is one printable character: those that are printable in Latin-1 (21..7E,
/// A1..AC, AE..FF) are themselves, the other 68 are U+0100, U+0101, ... in the order of the bytes.
/// So a space is U+0120 and a line feed U+010A. Source: Radford et al. 2019, the encoder published
/// with GPT-2.

#include <string>
#include <string_view>

namespace recua::tokenizer {

/// The bytes that written stands for. What is not of the alphabet stays as it is.
[[nodiscard]] std::string from_byte_level(std::string_view written);

/// How bytes are written in the vocabulary.
[[nodiscard]] std::string to_byte_level(std::string_view bytes);

}  // namespace recua::tokenizer
