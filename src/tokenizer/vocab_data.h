#pragma once
/// A vocabulary as a model file gives it, before anything about it is checked.
///
/// A plain struct, so that the tokenizer need not know the file format; model/vocab.h fills it from
/// a GGUF file. Field names in error messages are the GGUF keys (tokenizer.ggml.*).

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace recua::tokenizer {

/// Numbers as in tokenizer.ggml.token_type.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,      // Stands for text that has no token.
  kControl = 3,      // <s>, <|im_end|>: structure, not text.
  kUserDefined = 4,  // Found in the text before it is split, such as <think>.
  kUnused = 5,
  kByte = 6,  // <0x0A>: one byte, for text that has no token.
};

struct VocabData {
  std::string model;  // "llama": SentencePiece, merged by score. "gpt2": byte-level BPE.
  std::string pre;    // How "gpt2" splits text into words: tokenizer/pretokenizer_schemes.h.

  std::vector<std::string> tokens;
  std::vector<float> scores;        // "llama": one per token. "gpt2": ignored.
  std::vector<std::int32_t> types;  // One TokenType per token; empty: all normal.
  std::vector<std::string> merges;  // "gpt2": "left right", the most wanted first.

  /// 4294967295 in a file, which is -1 here, means none, as an absent key does.
  std::optional<std::int32_t> bos, eos, eot, eom, unk, sep, pad;

  /// Absent: what the kind of vocabulary usually does.
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

}  // namespace recua::tokenizer
