#include "model/train/training_batch.h"

#include <algorithm>
#include <string>

#include "engine/base/error.h"

namespace inkling {
namespace {

void check_range(std::span<const std::int32_t> values, std::int64_t low, std::int64_t high,
                 const char* field) {
  for (const std::int32_t value : values) {
    require(value >= low && value < high, Code::usage, [&] {
      return std::string("training_batch: ") + field + ": expected " + std::to_string(low) + " to " +
             std::to_string(high - 1) + ", got " + std::to_string(value);
    });
  }
}

}  // namespace

std::int64_t TrainingBatch::target_count() const noexcept {
  return static_cast<std::int64_t>(targets.size()) - std::ranges::count(targets, kNoTarget);
}

void TrainingBatch::clear() noexcept {
  ids.clear();
  targets.clear();
  positions.clear();
  cu_seqlens.assign(1, 0);
}

void TrainingBatch::add(std::span<const std::int32_t> sequence,
                        std::span<const std::int32_t> sequence_targets) {
  ids.insert(ids.end(), sequence.begin(), sequence.end());
  targets.insert(targets.end(), sequence_targets.begin(), sequence_targets.end());
  for (std::size_t i = 0; i < sequence.size(); ++i) positions.push_back(static_cast<std::int32_t>(i));
  cu_seqlens.push_back(static_cast<std::int32_t>(ids.size()));
}

void TrainingBatch::validate(std::int64_t vocab_size, std::int64_t n_positions) const {
  require(targets.size() == ids.size() && positions.size() == ids.size(), Code::usage, [&] {
    return "training_batch: targets, positions: expected one per id, got " + std::to_string(targets.size()) +
           " and " + std::to_string(positions.size()) + " for " + std::to_string(ids.size());
  });
  require(!cu_seqlens.empty() && cu_seqlens.front() == 0 && cu_seqlens.back() == tokens() &&
              std::ranges::is_sorted(cu_seqlens),
          Code::usage, [&] {
            return "training_batch: cu_seqlens: expected offsets rising from 0 to " +
                   std::to_string(ids.size()) + ", got " + std::to_string(cu_seqlens.size()) + " others";
          });
  check_range(ids, 0, vocab_size, "ids");
  check_range(targets, kNoTarget, vocab_size, "targets");
  check_range(positions, 0, n_positions, "positions");
}

}  // namespace inkling
