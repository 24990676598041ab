// UTF-8 (RFC 3629, Unicode 15 §3.9 table 3-7): validation, repair, and repair of a stream.
//
// One policy for ill-formed bytes everywhere: each maximal subpart becomes one U+FFFD, as the WHATWG Encoding
// Standard does (and Python's errors="replace"). E2 82 41 → U+FFFD 'A'; ED A0 80 → three U+FFFD.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace inkling {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

/// Automaton over bytes, one character at a time. `accept` is the state between characters.
class Utf8Automaton {
 public:
  enum class Step : std::uint8_t {
    complete,  ///< the byte ends a character
    more,      ///< the character goes on
    reject,    ///< the byte cannot follow; the state is reset and the byte must be offered again, unless it
               ///< came first, when it is ill-formed by itself
  };
  Step step(unsigned char byte) noexcept;
  /// Bytes of the unfinished character so far, 0…3.
  std::size_t pending() const noexcept { return pending_; }
  void reset() noexcept { pending_ = missing_ = 0; }

 private:
  std::uint8_t pending_ = 0;
  std::uint8_t missing_ = 0;
  unsigned char low_ = 0x80, high_ = 0xBF;  // bounds of the next continuation byte
};

/// Length in bytes of the longest valid prefix; text.size() when all is valid.
std::size_t valid_utf8_prefix(std::string_view text) noexcept;
inline bool is_valid_utf8(std::string_view text) noexcept {
  return valid_utf8_prefix(text) == text.size();
}

/// `bytes` with every maximal ill-formed subpart replaced by U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

/// Appends the UTF-8 of a scalar value (not a surrogate, ≤ U+10FFFF).
void append_utf8(char32_t scalar, std::string& out);

/// The scalar that starts at `at` in valid UTF-8; moves `at` past it.
char32_t next_scalar(std::string_view valid, std::size_t& at) noexcept;

/// to_valid_utf8 for a stream in chunks of any size: the same bytes come out however they were cut.
class Utf8Replacer {
 public:
  /// Appends to `out` all characters that are now complete.
  void push(std::string_view bytes, std::string& out);
  /// The stream ended: an unfinished character becomes one U+FFFD. The replacer is then as new.
  void finish(std::string& out);

 private:
  Utf8Automaton automaton_;
  std::array<char, 4> held_{};  // the automaton's pending bytes
};

}  // namespace inkling
