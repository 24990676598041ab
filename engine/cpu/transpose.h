// Transposition in registers. Include only from sources of one ISA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inkling::cpu {

/// to[c][r] = from[r][c] for (rows, columns) of `from`; strides in elements. Squares of vectors, the rest one
/// by one. Rows of `from` are read in runs, `to` is best small enough to stay in cache.
template <class V>
inline void transpose(const float* from, std::ptrdiff_t from_stride, std::int64_t rows, std::int64_t columns,
                      float* to, std::ptrdiff_t to_stride) {
  constexpr int L = V::kLanes;
  std::int64_t r = 0;
  for (; r + L <= rows; r += L) {
    const float* strip = from + r * from_stride;
    std::int64_t c = 0;
    for (; c + L <= columns; c += L) {
      typename V::F square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = V::load(strip + i * from_stride + c);
      V::transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) V::store(to + (c + i) * to_stride + r, square[i]);
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < L; ++i) to[c * to_stride + r + i] = strip[i * from_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
  }
}

}  // namespace inkling::cpu
