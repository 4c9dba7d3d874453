#pragma once
/// What a token id is. Includes nothing of ours, so that any folder may name one.

#include <cstdint>

namespace recua {

/// An index into a model's vocabulary, from 0. Negative only as a mark for "none".
using TokenId = std::int32_t;

inline constexpr TokenId kNoToken = -1;

namespace tokenizer {
using recua::TokenId;
}  // namespace tokenizer

}  // namespace recua
