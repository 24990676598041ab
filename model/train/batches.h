// Batches: which ids an iteration learns from. Pure functions of (data, sizes, seed, number), so that a
// resumed run, and any number of processes, sees the same text.
#pragma once

#include <cstdint>

#include "model/train/token_data.h"
#include "model/train/training_batch.h"

namespace inkling {

/// How a batch is cut from the data.
enum class Packing : std::uint8_t {
  blocks,     ///< nanoGPT's: batch_size runs of block_size ids from anywhere, across documents
  documents,  ///< whole documents back to back, batch_size · block_size ids in all, none sees another
};

/// Draws that must not be the same: each has numbers of its own.
enum class Split : std::uint32_t { train, train_loss, validation_loss };

struct BatchShape {
  Packing packing = Packing::blocks;
  std::int64_t batch_size = 12, block_size = 64;
  std::uint64_t seed = 1337;
};

/// The fewest ids that batches can be cut from: a block and the id after it; or with documents one of two
/// ids.
std::int64_t fewest_ids(const BatchShape& shape) noexcept;

/// Batch `number` of a split. Starts are uniform: word 0, 1 of philox({number mod 2³², b, 2³² − 2, split + 3
/// · ⌊number / 2³²⌋}, seed) as a fraction of the starts there are, for sequence b. With documents the start
/// draws an id, and its document comes whole, or if it has more than block_size ids, the one of its runs of
/// block_size that holds that id; the last is cut where the batch is full. Targets are the ids that follow;
/// the last of a document has none. Throws Error{usage} for data shorter than fewest_ids(), naming both.
TrainingBatch draw_batch(const TokenData& data, const BatchShape& shape, Split split, std::uint64_t number);

}  // namespace inkling
