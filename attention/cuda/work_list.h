// Lists of work for the attention kernels, built on the host once per batch: every layer and both passes
// reuse them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/cuda/args.h"

namespace inkling::cuda {

struct WorkListShape {
  std::span<const std::int32_t> cu_q, cu_k;  ///< (B+1) each
  std::int32_t heads = 1;                    ///< of the tiles: H for queries, Hkv for keys
  std::int32_t rows = 128;                   ///< of a tile
  MaskKind mask = MaskKind::none;
  std::int32_t left = kFar, right = kFar;
  std::int64_t head_bytes_per_key = 256;  ///< K and V of a key in one head: what a section is measured in
};

/// Every tile of queries (key_tiles: of keys), the longest first within a section. A section is a run of
/// (sequence, head) whose keys and values fit a part of the L2 cache together, so that a long batch does not
/// read them again from memory for each tile. Tiles that see nothing are there too: their rows must be
/// written. Tiles of keys of one head are in the order of keys, so that one may wait for those below it, and
/// their sections have many heads, so that it seldom does.
/// Θ(tiles · log tiles).
std::vector<AttentionTile> query_tiles(const WorkListShape& shape);
std::vector<AttentionTile> key_tiles(const WorkListShape& shape);

}  // namespace inkling::cuda
