// GPT-2's pre-tokeniser: where merging must not cross. One regular expression (openai/gpt-2, encoder.py):
//
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
// PCRE2 decides, by its Unicode tables, wherever a character is not ASCII. Runs of ASCII, most of most texts,
// are split by the same rules written out by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace inkling {

/// Immutable; any thread.
class Pretokenizer {
 public:
  Pretokenizer();

  /// regex_only is for tests: both paths give the same words.
  enum class Path : std::uint8_t { ascii_by_hand, regex_only };

  /// A walk over the words of one valid UTF-8 text. Every byte belongs to exactly one word. One thread at a
  /// time.
  class Words {
   public:
    Words(const Pretokenizer& pretokenizer, std::string_view text, Path path = Path::ascii_by_hand);
    /// The next word; empty at the end.
    std::string_view next();

   private:
    std::size_t match(std::size_t at);

    const Pretokenizer& pretokenizer_;
    std::string_view text_;
    Path path_;
    std::size_t at_ = 0;
    std::unique_ptr<void, void (*)(void*)> scratch_;  // PCRE2's match data, made at the first need
  };

 private:
  /// Length of the word at `at` when ASCII alone decides it, else 0.
  static std::size_t ascii_word(std::string_view text, std::size_t at) noexcept;

  std::shared_ptr<const void> code_;
};

}  // namespace inkling
