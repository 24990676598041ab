// Where a text may be cut so that libsentencepiece, given the parts, finds the pieces of the whole.
//
// Why: the library (0.1.97) joins neighbouring unknown characters by copying the token so far for each of
// them, so that 600 kB of unknown letters take 4 s and 6 MB take 400. A cut between two characters changes
// nothing when no piece holds them side by side, none begins with the second, and the normaliser leaves both
// alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/charsmap.h"
#include "tokenizer/sentencepiece_guard.h"

namespace inkling {

/// Immutable; any thread.
class SentencePieceCutter {
 public:
  explicit SentencePieceCutter(const SentencePieceFacts& facts);

  /// Ends of the parts of a valid text, the last being its size.
  std::vector<std::size_t> cuts(std::string_view text) const;

  /// The library counts in int and keeps 24 bytes for each byte of text. 64 KiB where cuts cannot help: word
  /// models, those with the space behind the word, and those without a piece for a lone space.
  std::size_t max_text_bytes() const noexcept {
    return cuttable_ ? std::size_t{4} << 20 : std::size_t{64} << 10;
  }

 private:
  bool joined(char32_t left, char32_t right) const noexcept;

  std::vector<std::uint64_t> pairs_;  // sorted: neighbours in some piece
  Charsmap charsmap_;
  bool cuttable_ = false;
};

}  // namespace inkling
