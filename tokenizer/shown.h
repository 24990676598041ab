// Pieces of a stranger's file in an error message.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace inkling {

/// `text`, valid UTF-8, fit for an error message: control characters become '?', at most 80 bytes are kept.
/// Printed as they are, a file's words could drive a terminal or fill a log.
inline std::string shown(std::string_view text) {
  constexpr std::size_t kKept = 80;
  const auto continues = [&](std::size_t at) {
    return (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80;
  };
  std::size_t size = text.size();
  if (size > kKept) {
    for (size = kKept; size > 0 && continues(size);) --size;
  }
  std::string out;
  for (std::size_t at = 0; at < size; ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const bool two =
        byte == 0xC2 && at + 1 < size && static_cast<unsigned char>(text[at + 1]) < 0xA0;  // U+0080 … 9F
    if (two) ++at;
    out += two || byte < 0x20 || byte == 0x7F ? '?' : text[at];
  }
  return size < text.size() ? out + "..." : out;
}

/// The same between quotation marks.
inline std::string in_quotes(std::string_view text) {
  return '"' + shown(text) + '"';
}

}  // namespace inkling
