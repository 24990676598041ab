// TrainingBatch: B sequences back to back with the token that should follow each of their tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace inkling {

/// Loss is not counted where the target is this.
inline constexpr std::int32_t kNoTarget = -1;

/// N tokens of B documents or blocks. Nothing pads, and no token sees another sequence's.
struct TrainingBatch {
  std::vector<std::int32_t> ids;               ///< (N)
  std::vector<std::int32_t> targets;           ///< (N) in [0, V), or kNoTarget
  std::vector<std::int32_t> positions;         ///< (N) from 0 in each sequence
  std::vector<std::int32_t> cu_seqlens = {0};  ///< (B+1) sequence b is rows cu_seqlens[b] … cu_seqlens[b+1]

  std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(ids.size()); }
  /// How many tokens have a target.
  std::int64_t target_count() const noexcept;
  /// Forgets all sequences and keeps the memory.
  void clear() noexcept;
  /// Appends one sequence; targets as many as ids.
  void add(std::span<const std::int32_t> sequence, std::span<const std::int32_t> sequence_targets);
  /// Throws Error{usage} "training_batch: FIELD: expected …, got …" for ids, targets or positions out of
  /// range, and offsets that do not cover them.
  void validate(std::int64_t vocab_size, std::int64_t n_positions) const;
};

}  // namespace inkling
