// GPT-2's printable alphabet of bytes (openai/gpt-2, encoder.py, bytes_to_unicode): printable Latin-1 bytes
// stand for themselves, the 68 others, in order, for U+0100, U+0101, …; so a space is 'Ġ' and a newline 'Ċ'.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer/utf8.h"

namespace inkling {

inline constexpr std::array<char32_t, 256> kByteAlphabet = [] {
  std::array<char32_t, 256> scalars{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    scalars[byte] = printable ? byte : next++;
  }
  return scalars;
}();

/// "\n" → "Ċ".
inline std::string to_byte_alphabet(std::string_view bytes) {
  std::string piece;
  for (const char c : bytes) append_utf8(kByteAlphabet[static_cast<unsigned char>(c)], piece);
  return piece;
}

/// "Ġthe" → " the"; nothing when a character is not of the alphabet. `piece` is valid UTF-8.
inline std::optional<std::string> from_byte_alphabet(std::string_view piece) {
  static constexpr auto kInverse = [] {
    std::array<std::int16_t, 0x144> inverse{};
    inverse.fill(-1);
    for (std::size_t byte = 0; byte < 256; ++byte)
      inverse[kByteAlphabet[byte]] = static_cast<std::int16_t>(byte);
    return inverse;
  }();
  std::string bytes;
  for (std::size_t at = 0; at < piece.size();) {
    const char32_t scalar = next_scalar(piece, at);
    if (scalar >= kInverse.size() || kInverse[scalar] < 0) return std::nullopt;
    bytes += static_cast<char>(kInverse[scalar]);
  }
  return bytes;
}

}  // namespace inkling
