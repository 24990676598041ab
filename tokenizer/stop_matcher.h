// StopMatcher: ends a stream of text at the first stop string, without showing any part of it.
//
// Text ends at the stop string that completes first (of several that complete at the same byte, the longest).
// Until then the longest end of the text that is a proper beginning of some stop string is held back, and no
// more. Aho & Corasick 1975, "Efficient string matching": O(1) amortised per byte whatever the stop strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace inkling {

/// One thread at a time; copies are independent.
class StopMatcher {
 public:
  /// No stop strings is legal and passes all text through. Code::usage for an empty one, or for more than
  /// kMaxStopBytes in all.
  static Result<StopMatcher> create(std::span<const std::string> stop_strings);
  static constexpr std::size_t kMaxStopBytes = std::size_t{1} << 20;

  /// Text that may be shown now; valid until the next call. Once a stop string matched, all further text is
  /// swallowed.
  std::string_view push(std::string_view text);

  /// No more text: what was held back and turned out not to be a stop string.
  std::string_view finish();

  /// The index of the stop string that ended the text.
  std::optional<std::size_t> matched() const noexcept { return matched_; }

  /// Begins a new text.
  void reset() noexcept;

 private:
  struct Node {
    std::uint32_t first_child = 0, next_sibling = 0, fail = 0;
    std::uint32_t depth = 0;
    std::uint32_t stop_length = 0, stop_index = 0;  // the longest stop string that ends here; length 0: none
    unsigned char byte = 0;
  };
  StopMatcher() : nodes_(1) {}
  void insert(std::string_view stop, std::uint32_t index);
  void link();
  std::uint32_t child(std::uint32_t node, unsigned char byte) const noexcept;

  std::vector<Node> nodes_;  // node 0 is the root
  std::uint32_t state_ = 0;
  std::string text_;  // what the last push returned, then the held bytes
  std::size_t shown_ = 0;
  std::optional<std::size_t> matched_;
};

}  // namespace inkling
