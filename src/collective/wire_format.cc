#include "collective/wire_format.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "base/check.h"
#include "base/half.h"

namespace recua::collective {
namespace {

constexpr WireFormat kFormats[] = {WireFormat::kF32, WireFormat::kF16, WireFormat::kBF16,
                                   WireFormat::kI8};

/// Below this the scale would not be a normal number.
constexpr float kTiny = 0x1.0p-119F;
/// Adding and taking it away rounds to a whole number, ties to even, for magnitudes below 2^22.
constexpr float kRound = 0x1.8p23F;

template <std::uint16_t (*kNarrow)(float)>
void encode_16(std::span<const float> values, std::byte* out) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t bits = kNarrow(values[i]);
    std::memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
  }
}

template <float (*kWiden)(std::uint16_t)>
void decode_16(const std::byte* in, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, in + i * sizeof(bits), sizeof(bits));
    values[i] = kWiden(bits);
  }
}

void encode_block_i8(std::span<const float> values, std::byte* out) {
  float largest = 0.0F;
  bool finite = true;
  for (const float value : values) {
    finite = finite && std::isfinite(value);
    largest = std::max(largest, std::fabs(value));
  }
  float scale = 0.0F;
  float inverse = 0.0F;
  if (!finite) {
    scale = std::numeric_limits<float>::quiet_NaN();
  } else if (largest >= kTiny) {
    scale = largest / 127.0F;
    inverse = 1.0F / scale;
  }
  std::memcpy(out, &scale, sizeof(scale));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float level = finite ? values[i] * inverse + kRound - kRound : 0.0F;
    out[sizeof(scale) + i] = static_cast<std::byte>(static_cast<std::int8_t>(level));
  }
}

void decode_block_i8(std::span<float> values, const std::byte* in) {
  float scale = 0.0F;
  std::memcpy(&scale, in, sizeof(scale));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = scale * static_cast<float>(static_cast<std::int8_t>(in[sizeof(scale) + i]));
  }
}

/// Calls work(block of values, its bytes) for each block.
template <class Value, class Byte, class Work>
void for_blocks(std::span<Value> values, Byte* bytes, Work work) {
  for (std::size_t begin = 0; begin < values.size(); begin += kFormatBlock) {
    const std::size_t n = std::min(kFormatBlock, values.size() - begin);
    work(values.subspan(begin, n), bytes);
    bytes += sizeof(float) + n;
  }
}

}  // namespace

std::string to_string(WireFormat format) {
  switch (format) {
    case WireFormat::kF32:
      return "f32";
    case WireFormat::kF16:
      return "f16";
    case WireFormat::kBF16:
      return "bf16";
    case WireFormat::kI8:
      return "i8";
  }
  return fmt::format("format {}", static_cast<unsigned>(format));
}

std::optional<WireFormat> wire_format_from_name(std::string_view name) {
  for (const WireFormat format : kFormats) {
    if (name == to_string(format)) return format;
  }
  return std::nullopt;
}

std::optional<WireFormat> wire_format_from_number(std::uint32_t number) {
  for (const WireFormat format : kFormats) {
    if (number == static_cast<std::uint32_t>(format)) return format;
  }
  return std::nullopt;
}

std::size_t wire_bytes(WireFormat format, std::size_t n_values) {
  switch (format) {
    case WireFormat::kF32:
      return 4 * n_values;
    case WireFormat::kF16:
    case WireFormat::kBF16:
      return 2 * n_values;
    case WireFormat::kI8:
      return n_values + (n_values + kFormatBlock - 1) / kFormatBlock * sizeof(float);
  }
  RECUA_CHECK(false && "a format that is none");
  return 0;
}

void encode(WireFormat format, std::span<const float> values, std::byte* out) {
  switch (format) {
    case WireFormat::kF32:
      if (!values.empty()) std::memcpy(out, values.data(), values.size_bytes());
      return;
    case WireFormat::kF16:
      return encode_16<f32_to_f16>(values, out);
    case WireFormat::kBF16:
      return encode_16<f32_to_bf16>(values, out);
    case WireFormat::kI8:
      return for_blocks(values, out, encode_block_i8);
  }
}

void decode(WireFormat format, const std::byte* in, std::span<float> values) {
  switch (format) {
    case WireFormat::kF32:
      if (!values.empty()) std::memcpy(values.data(), in, values.size_bytes());
      return;
    case WireFormat::kF16:
      return decode_16<f16_to_f32>(in, values);
    case WireFormat::kBF16:
      return decode_16<bf16_to_f32>(in, values);
    case WireFormat::kI8:
      return for_blocks(values, in, decode_block_i8);
  }
}

void round_values(WireFormat format, std::span<float> values) {
  if (format == WireFormat::kF32) return;
  std::array<std::byte, (kFormatBlock + 1) * sizeof(float)> bytes;
  for (std::size_t begin = 0; begin < values.size(); begin += kFormatBlock) {
    const auto block = values.subspan(begin, std::min(kFormatBlock, values.size() - begin));
    encode(format, block, bytes.data());
    decode(format, bytes.data(), block);
  }
}

}  // namespace recua::collective
