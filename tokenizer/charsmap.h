// SentencePiece's precompiled character map: the size of a trie in bytes (u32), a double-array trie (Aoe
// 1989, in the layout of darts-clone), and NUL-terminated replacements that its leaves point to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace inkling {

/// Why a map is refused; nullptr when it is sound: no walk of the library leaves the trie, no text meets more
/// than kMaxCharsmapMatches nested rules (the library's array), and every replacement is short, valid UTF-8
/// that ends in the map.
const char* charsmap_flaw(std::string_view charsmap);

inline constexpr std::size_t kMaxCharsmapBytes = std::size_t{4} << 20;
inline constexpr std::size_t kMaxCharsmapMatches = 32;
inline constexpr std::size_t kMaxCharsmapDepth = 256;  // bytes of the text in one rule
inline constexpr std::size_t kMaxReplacementBytes = 64;

/// The trie of a sound map.
class Charsmap {
 public:
  Charsmap() = default;
  explicit Charsmap(std::string_view sound);
  /// Bytes of `text` that the longest rule replaces; 0 when none does.
  std::size_t match(std::string_view text) const noexcept;

 private:
  std::vector<std::uint32_t> units_;
};

}  // namespace inkling
