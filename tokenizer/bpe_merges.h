// Byte-pair merging (Sennrich, Haddow & Birch 2016, §3.2): while some neighbours are a rule, join the pair
// whose rule ranks first, leftmost first.
//
// Words up to kShortWord symbols: scan for the best pair each time, O(n²) on a few cache lines. Longer ones:
// a linked list, and the positions of each rank in order, O(n log n) whatever the text; 8 MB of one letter is
// one word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tokenizer/flat_array.h"
#include "tokenizer/image.h"

namespace inkling {

/// Rank is the place in the list of rules. Symbols stand for strings: `merged` for those of left and right
/// together.
struct MergeRule {
  std::int32_t left = 0, right = 0, merged = 0;
};

/// Immutable; any thread.
class BpeMerges {
 public:
  static constexpr std::size_t kShortWord = 160;
  static constexpr std::size_t kMaxRules = std::size_t{1} << 24;

  explicit BpeMerges(std::vector<MergeRule> rules);
  /// Of an image, used where it is. Throws Code::malformed. Whether symbols are what they stand for is for
  /// the caller to check.
  explicit BpeMerges(ImageReader& image);
  void write(ImageWriter& image) const;

  /// The rank of a later rule for a pair that had one already, if there is any.
  std::optional<std::size_t> duplicate() const noexcept { return duplicate_; }

  /// Joins in place; the word is then its first `return value` symbols. At most 2³² − 2 symbols.
  std::size_t apply(std::span<std::int32_t> word) const;

  std::size_t size() const noexcept { return rules_.size(); }
  std::span<const MergeRule> rules() const noexcept { return rules_.elements(); }

 private:
  static constexpr std::uint32_t kNoRule = 0xFFFFFFFF;

  std::uint32_t rank(std::int32_t left, std::int32_t right) const noexcept {
    return slots_[position(left, right)];
  }
  std::size_t position(std::int32_t left, std::int32_t right) const noexcept;
  std::size_t apply_short(std::span<std::int32_t> word) const;
  std::size_t apply_long(std::span<std::int32_t> word) const;

  FlatArray<MergeRule> rules_;
  FlatArray<std::uint32_t> slots_;  // pair → rank: open addressing, at most half full
  int shift_ = 0;
  std::optional<std::size_t> duplicate_;
};

}  // namespace inkling
