// The register tile: the one loop in which float matrix products happen, in linear layers and in attention.
//
//   C[r][j] (+)= Σ_k A[r][k] · B[k][j]      r < MR rows, j < NV·lanes columns
//
// Every accumulator is one chain of FMAs over rising k, so an element's bits depend only on its row of A and
// its column of B: not on MR, not on how rows are grouped, not on where k is cut (cut sums go through C as
// f32, which loses nothing). That is the whole secret of batch-invariant results. Cost: 2·MR·NV·lanes flops
// per NV + MR loads. Oracle: reference.cpp. Include only from sources of one ISA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "engine/dtype.h"

namespace inkling::cpu {

/// Whether a tile starts at zero or goes on from what C holds.
enum class Sum : std::uint8_t { start, go_on };

/// How a factor lies in memory: A[r][k] at a[r·lda + k], or at a[k·lda + r].
enum class By : std::uint8_t { rows, columns };

/// What a product asks for while it computes, so that memory far from the core has come when it is wanted: at
/// each step of k a few cache lines into L2, as long as any() are left; advance() when a tile's steps are
/// done.
struct NothingAhead {
  static constexpr bool any() { return false; }
  void operator()(std::int64_t) const {}
  void advance(std::int64_t) {}
};
/// PerStep lines of a run of memory with every step.
template <int PerStep>
struct LinesAhead {
  const char* from = nullptr;
  std::int64_t steps = 0;
  bool any() const { return steps > 0; }
  void operator()(std::int64_t step) const {
#pragma GCC unroll 4
    for (int i = 0; i < PerStep; ++i) __builtin_prefetch(from + (step * PerStep + i) * 64, 0, 2);
  }
  void advance(std::int64_t done) {
    from += 64 * PerStep * done;
    steps -= done;
  }
};
/// A line with every step of rows of 2^shift lines.
struct RowsAhead {
  const char* from = nullptr;
  std::ptrdiff_t stride = 0;  // bytes from row to row
  int shift = 0;
  std::int64_t steps = 0, done = 0;
  bool any() const { return done < steps; }
  void operator()(std::int64_t step) const {
    const std::int64_t line = done + step, row = line >> shift;
    __builtin_prefetch(from + row * stride + (line - (row << shift)) * 64, 0, 2);
  }
  void advance(std::int64_t more) { done += more; }
};

/// A: stride lda, f32. B: row stride ldb, of W (f32, f16, bf16; widened exactly). C: row stride ldc, f32.
template <class V, class W, int MR, int NV, By A = By::rows, class Ahead = NothingAhead>
inline void tile(const float* a, std::ptrdiff_t lda, const W* b, std::ptrdiff_t ldb, std::int64_t k, float* c,
                 std::ptrdiff_t ldc, Sum sum, Ahead ahead = {}) {
  using F = typename V::F;
  constexpr int L = V::kLanes;
  F acc[MR][NV];  // unrolled everywhere, or the compiler keeps it in memory at the start and the end
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = sum == Sum::start ? V::zero() : V::load(c + r * ldc + j * L);
  }
  // By twos: fewer instructions beside the FMAs, 3 to 5 % where a core shares its issue slots (README).
#pragma GCC unroll 2
  for (std::int64_t kk = 0; kk < k; ++kk, b += ldb) {
    // One row streams B from memory: ask for it well before the hardware prefetcher, which stops at 4 KiB.
    if constexpr (MR <= 2) {
      for (std::size_t line = 0; line < NV * L * sizeof(W); line += 64) {
        __builtin_prefetch(reinterpret_cast<const char*>(b + 24 * ldb) + line);
      }
    } else {
      ahead(kk);
    }
    F w[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) w[j] = V::load(b + j * L);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const F x = V::set1(A == By::rows ? a[r * lda + kk] : a[kk * lda + r]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = V::fma(x, w[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) V::store(c + r * ldc + j * L, acc[r][j]);
  }
}

namespace detail {

/// Calls fn.template operator()<n>() for the n in [1, Max] that equals `count`.
template <int Max, class Fn>
inline void with_constant(std::int64_t count, Fn&& fn) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (void)((count == I + 1 ? (fn.template operator()<I + 1>(), true) : false) || ...);
  }
  (std::make_integer_sequence<int, Max>{});
}

}  // namespace detail

/// Calls fn.template operator()<MR>(first_row) over `rows` rows in tiles of nearly equal height ≤ MaxRows.
template <int MaxRows, class Fn>
inline void for_row_tiles(std::int64_t rows, Fn&& fn) {
  const std::int64_t tiles = (rows + MaxRows - 1) / MaxRows;
  std::int64_t row = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const std::int64_t height = (rows - row + (tiles - t) - 1) / (tiles - t);
    detail::with_constant<MaxRows>(height, [&]<int MR>() { fn.template operator()<MR>(row); });
    row += height;
  }
}

/// A whole product of `rows` rows with `vectors` · lanes columns, in tiles. Shapes and strides as tile().
template <class V, class W, By A = By::rows, class Ahead = NothingAhead>
inline void product(const float* a, std::ptrdiff_t lda, std::int64_t rows, const W* b, std::ptrdiff_t ldb,
                    std::int64_t k, int vectors, float* c, std::ptrdiff_t ldc, Sum sum, Ahead ahead = {}) {
  for (int v = 0; v < vectors; v += V::kPanelVectors) {
    const int width = vectors - v < V::kPanelVectors ? vectors - v : V::kPanelVectors;
    const std::ptrdiff_t column = static_cast<std::ptrdiff_t>(v) * V::kLanes;
    detail::with_constant<V::kPanelVectors>(width, [&]<int NV>() {
      for_row_tiles<V::kTileRows>(rows, [&]<int MR>(std::int64_t row) {
        const float* rows_of_a = a + row * (A == By::rows ? lda : 1);
        float* out = c + row * ldc + column;
        if (ahead.any()) {
          tile<V, W, MR, NV, A>(rows_of_a, lda, b + column, ldb, k, out, ldc, sum, ahead);
          ahead.advance(k);
        } else {
          tile<V, W, MR, NV, A>(rows_of_a, lda, b + column, ldb, k, out, ldc, sum);
        }
      });
    });
  }
}

}  // namespace inkling::cpu
