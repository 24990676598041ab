// The tiles of linear_hopper.cu, and which of them a shape takes. Host code alone: bits do not depend on it,
// and tests ask it which kernel they run.
#pragma once

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

inline constexpr HopperTileShape kHopperTiles[] = {{2, 192, 4, 1}, {2, 128, 6, 1}, {2, 64, 8, 1},
                                                   {2, 128, 6, 4}, {1, 64, 6, 1},  {1, 64, 6, 4}};

/// About how many µs (M, K) · (K, N) takes in such tiles on an H200, to choose by: a step of 64 by the
/// busiest processor, what follows the sums of a tile, and starting.
inline double hopper_time(const HopperTileShape& tile, std::int64_t m, std::int64_t n, std::int64_t k) {
  constexpr int kProcessors = 132;
  const int resident = tile.bytes() <= 113 * 1024 ? 2 : 1;
  const double area = tile.rows() * tile.columns, start = 3.0;
  const double step = 0.08 + 1.8e-5 * area, finish = 1e-4 * area;
  const auto parts = [](std::int64_t of, std::int64_t per) {
    return static_cast<double>((of + per - 1) / per);
  };
  const double blocks = parts(m, tile.rows()) * parts(n, tile.columns) * tile.splits;
  const double steps = std::ceil(parts(k, 64) / tile.splits);
  return start + std::ceil(blocks / kProcessors) * steps * step +
         std::ceil(blocks / (kProcessors * resident)) * finish;
}

/// The index in kHopperTiles of the quickest for a shape.
inline int hopper_tile(std::int64_t m, std::int64_t n, std::int64_t k) {
  int best = 0;
  for (int i = 1; i < static_cast<int>(std::size(kHopperTiles)); ++i) {
    if (hopper_time(kHopperTiles[i], m, n, k) < hopper_time(kHopperTiles[best], m, n, k)) best = i;
  }
  return best;
}

}  // namespace inkling::cuda
