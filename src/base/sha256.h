#pragma once
/// SHA-256, which names every chunk of a model's weights (docs/protocol.md, "Weights").

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace recua {

using Digest = std::array<std::byte, 32>;

Digest sha256(std::span<const std::byte> bytes);

/// Lower-case hexadecimal, 64 characters.
std::string to_hex(std::span<const std::byte> bytes);

}  // namespace recua
