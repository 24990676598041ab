// Added tokens: strings such as <|endoftext|> that are cut out of the text, whole, before anything else sees
// it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace inkling {

/// Immutable; any thread.
class AddedTokens {
 public:
  static constexpr std::size_t kMaxLength = 256;

  struct Entry {
    std::string text;
    std::int32_t id = 0;
    bool special =
        false;  ///< special ones are plain text under SpecialTokens::literal; the others always count
  };

  /// Texts are distinct and 1…kMaxLength bytes long.
  explicit AddedTokens(std::vector<Entry> entries);

  /// The first added token at or after `from`, of several there the longest; id −1 when there is none.
  TokenSpan find(std::string_view text, std::size_t from, SpecialTokens special) const noexcept;

  std::size_t size() const noexcept { return entries_.size(); }

  template <class Visit>
  void for_each_id(Visit&& visit) const {
    for (const Entry& entry : entries_) visit(entry.id);
  }

 private:
  std::vector<Entry> entries_;              // by first byte, then longest first
  std::array<std::uint32_t, 257> begin_{};  // entries_ of first byte b: [begin_[b], begin_[b + 1])
  std::string first_bytes_;
};

}  // namespace inkling
