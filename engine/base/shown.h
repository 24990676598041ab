// shown(): a stranger's words in a message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace inkling {

/// `text`, UTF-8 or any bytes, fit for a message: a control character (U+0000 to 001F, 7F to 9F) becomes '?',
/// at most 80 bytes are kept, and no UTF-8 character is cut. Names and words of a file printed as they are
/// could drive a terminal or fill a log.
inline std::string shown(std::string_view text) {
  constexpr std::size_t kKept = 80;
  constexpr std::size_t kLongest = 4;  // bytes of a UTF-8 character
  std::size_t size = text.size();
  if (size > kKept) {
    const auto continues = [&](std::size_t at) {
      return (static_cast<unsigned char>(text[at]) & 0xc0u) == 0x80u;
    };
    size = kKept;
    while (size > kKept - kLongest && continues(size)) --size;
    if (continues(size)) size = kKept;  // no UTF-8: there is no character to spare
  }
  std::string out;
  for (std::size_t at = 0; at < size; ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const bool c1 = byte == 0xc2 && at + 1 < size && static_cast<unsigned char>(text[at + 1]) >= 0x80 &&
                    static_cast<unsigned char>(text[at + 1]) < 0xa0;  // U+0080 to 9F, two bytes
    if (c1) ++at;
    out += c1 || byte < 0x20 || byte == 0x7f ? '?' : text[at];
  }
  return size < text.size() ? out + "..." : out;
}

/// The same between quotation marks.
inline std::string in_quotes(std::string_view text) {
  return '"' + shown(text) + '"';
}

}  // namespace inkling
