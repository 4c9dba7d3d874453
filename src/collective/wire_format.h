#pragma once
/// How numbers travel in collective calls: as they are, or rounded to fewer bytes for slow links.
/// docs/protocol.md, "Collectives".
///
/// What a format makes of a finite x, with m the largest magnitude among the 32 values of x's block
/// (the vector is cut into blocks of 32 from its start, the last one may be shorter):
///   kF32   x, 4 bytes each
///   kF16   within max(2^-11 |x|, 2^-25) for |x| <= 65504; larger ones become infinite. 2 bytes
///   kBF16  within 2^-8 |x| for |x| < 2^127 (and 2^-134 near zero). 2 bytes
///   kI8    within m / 253, or 2^-119 where that is more, for m < 2^127: an F32 scale m / 127 and
///          one byte for each value. 4 bytes a block and 1 byte each
/// Infinite values and NaN stay such in the 16-bit formats; in kI8 they make their whole block NaN.
///
/// In an all_reduce every rank's part and the sum are rounded once each, so the result differs from
/// the exact sum by the errors of all parts, that of n - 1 additions, and that of the sum. All
/// ranks get the same bits: a rank's own part is rounded too.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace recua::collective {

/// GGUF's numbers of the types, or one of our own from 0x8001 on.
enum class WireFormat : std::uint16_t { kF32 = 0, kF16 = 1, kBF16 = 30, kI8 = 0x8001 };

/// "f32", "f16", "bf16", "i8"
[[nodiscard]] std::string to_string(WireFormat format);
/// The format of this name, or number; nothing where there is none.
[[nodiscard]] std::optional<WireFormat> wire_format_from_name(std::string_view name);
[[nodiscard]] std::optional<WireFormat> wire_format_from_number(std::uint32_t number);

/// Vectors may be cut between blocks only.
inline constexpr std::size_t kFormatBlock = 32;

[[nodiscard]] std::size_t wire_bytes(WireFormat format, std::size_t n_values);
/// out: wire_bytes() long. values begin at the start of a block.
void encode(WireFormat format, std::span<const float> values, std::byte* out);
void decode(WireFormat format, const std::byte* in, std::span<float> values);
/// As the other ranks see them: encoded and decoded.
void round_values(WireFormat format, std::span<float> values);

}  // namespace recua::collective
