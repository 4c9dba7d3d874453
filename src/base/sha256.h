#pragma once
/// SHA-256, which names every chunk of a model's weights (docs/protocol.md, "Weights"), and what
/// else the base needs of a cryptographic library.

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

/// Whether two secrets of one length are equal, in time that does not depend on their bytes.
bool equal_in_constant_time(std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace recua
