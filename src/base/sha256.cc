#include "base/sha256.h"

// The functions that OpenSSL would rather not have called directly: behind the others are its
// providers, with which a program is 3 MB larger; alone these are 20 KB of libcrypto.a. Both choose
// the processor's instructions alike.
// NOLINTNEXTLINE(readability-identifier-naming): OpenSSL's own name.
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "base/check.h"

namespace recua {

Digest sha256(std::span<const std::byte> bytes) {
  Digest out{};
  SHA256_CTX state;
  RECUA_CHECK(SHA256_Init(&state) == 1);
  RECUA_CHECK(SHA256_Update(&state, bytes.data(), bytes.size()) == 1);
  RECUA_CHECK(SHA256_Final(reinterpret_cast<unsigned char*>(out.data()), &state) == 1);
  return out;
}

std::string to_hex(std::span<const std::byte> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const std::byte b : bytes) {
    out.push_back(kDigits[std::to_integer<unsigned>(b) >> 4]);
    out.push_back(kDigits[std::to_integer<unsigned>(b) & 15]);
  }
  return out;
}

bool equal_in_constant_time(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace recua
