// Which keys a tile of queries meets, and which queries a tile of keys: shared by the host, which builds
// lists of work from it, and the kernels, which walk it. constexpr, so both sides run the same lines.
#pragma once

#include <cstdint>

#include "attention/cuda/args.h"

namespace inkling::cuda {

/// Query i sees keys max(0, i + from) … min(Tk, i + until) − 1, less what single scores hide.
struct KeyWindow {
  std::int32_t from, until;
};

constexpr KeyWindow key_window(MaskKind kind, std::int32_t left, std::int32_t right, std::int32_t queries,
                               std::int32_t keys) noexcept {
  const std::int32_t past = keys - queries;
  switch (kind) {
    case MaskKind::causal_upper_left:
      return {-kFar, 1};
    case MaskKind::causal_lower_right:
      return {-kFar, past + 1};
    case MaskKind::sliding_window:
    case MaskKind::document:
      return {left >= kFar ? -kFar : past - left, right >= kFar ? kFar : past + right + 1};
    default:
      return {-kFar, kFar};
  }
}

/// A half-open run of rows.
struct RowSpan {
  std::int32_t begin = 0, end = 0;
  constexpr std::int32_t count() const noexcept { return end > begin ? end - begin : 0; }
};

constexpr RowSpan clip(std::int64_t begin, std::int64_t end, std::int32_t rows) noexcept {
  const std::int64_t low = begin < 0 ? 0 : begin, high = end > rows ? rows : end;
  if (high <= low) return {};
  return {static_cast<std::int32_t>(low), static_cast<std::int32_t>(high)};
}

/// Keys that some query in [first, last) sees.
constexpr RowSpan keys_of_queries(KeyWindow window, std::int32_t first, std::int32_t last,
                                  std::int32_t keys) noexcept {
  return clip(std::int64_t{first} + window.from, std::int64_t{last} - 1 + window.until, keys);
}

/// Queries that see some key in [first, last).
constexpr RowSpan queries_of_keys(KeyWindow window, std::int32_t first, std::int32_t last,
                                  std::int32_t queries) noexcept {
  return clip(std::int64_t{first} + 1 - window.until, std::int64_t{last} - window.from, queries);
}

/// Whether every query in [first, last) sees every key in [key, key + count).
constexpr bool all_visible(KeyWindow window, std::int32_t first, std::int32_t last, std::int32_t key,
                           std::int32_t count, std::int32_t keys) noexcept {
  return key >= last - 1 + window.from && key + count <= first + window.until && key + count <= keys;
}

}  // namespace inkling::cuda
