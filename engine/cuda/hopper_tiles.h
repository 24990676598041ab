// The tiles of linear_hopper.cu, and which of them a shape takes. Host code alone: bits do not depend on it,
// and tests ask it which kernel they run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

namespace inkling::cuda {

struct HopperTileShape {
  int groups;   ///< warpgroups, of 64 rows each
  int columns;  ///< of the output
  int stages;   ///< steps of 64 of k in flight
  int splits;   ///< blocks that share the four runs of k

  constexpr int rows() const noexcept { return 64 * groups; }
  constexpr int stage_bytes() const noexcept { return (rows() + columns) * 128; }
  constexpr int bytes() const noexcept { return stage_bytes() * stages; }
};

inline constexpr HopperTileShape kHopperTiles[] = {{2, 192, 5, 1}, {2, 144, 6, 1}, {2, 128, 6, 1},
                                                   {2, 96, 7, 1},  {1, 144, 6, 1}, {1, 96, 8, 1},
                                                   {1, 64, 8, 1},  {1, 64, 6, 4}};

/// About how many µs (M, K) · (K, N) takes in such tiles on an H200, to choose by: a step of 64 of k by the
/// busiest processor, which takes in 64 bytes and multiplies 2048 pairs a cycle, with a latency of its own;
/// what follows the sums of a tile; and starting. Clusters of four leave some processors without work.
inline double hopper_time(const HopperTileShape& tile, std::int64_t m, std::int64_t n, std::int64_t k) {
  const int processors = tile.splits == 4 ? 120 : 132, resident = tile.bytes() <= 113 * 1024 ? 2 : 1;
  const double area = tile.rows() * tile.columns, start = 3.0;
  const double step = std::max({0.145, tile.stage_bytes() / 1.2e5, 1.9e-5 * area});
  const double finish = 1e-4 * area + (tile.splits > 1 ? 1.0 : 0.0);
  const auto parts = [](std::int64_t of, std::int64_t per) {
    return static_cast<double>((of + per - 1) / per);
  };
  const double blocks = parts(m, tile.rows()) * parts(n, tile.columns) * tile.splits;
  const double steps = std::ceil(parts(k, 64) / tile.splits);
  return start + std::ceil(blocks / processors) * steps * step +
         std::ceil(blocks / (processors * resident)) * finish;
}

/// The index in kHopperTiles of the quickest for a shape.
inline int hopper_tile(std::int64_t m, std::int64_t n, std::int64_t k) {
  // Up to 128 rows wait for the weight to come from memory, of which four times the blocks ask for more at
  // once: 64 sequences decoded from an empty context took 433 µs a step by the times above, 385 so.
  constexpr int kFour = static_cast<int>(std::size(kHopperTiles)) - 1;
  constexpr HopperTileShape kTile = kHopperTiles[kFour];
  const std::int64_t tiles =
      (m + kTile.rows() - 1) / kTile.rows() * ((n + kTile.columns - 1) / kTile.columns);
  if (m <= 128 && tiles * kTile.splits <= 3 * 132) return kFour;
  int best = 0;
  for (int i = 1; i < static_cast<int>(std::size(kHopperTiles)); ++i) {
    if (hopper_time(kHopperTiles[i], m, n, k) < hopper_time(kHopperTiles[best], m, n, k)) best = i;
  }
  return best;
}

}  // namespace inkling::cuda
