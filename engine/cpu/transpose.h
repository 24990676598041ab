// Transposition in registers. Include only from sources of one ISA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/dtype.h"

namespace inkling::cpu {

/// to[c][r] = from[r][c] for (rows, columns) of `from`; strides in elements. Squares of vectors, the rest one
/// by one. Rows of `from` are read in runs, `to` is best small enough to stay in cache. S and T: f32, bf16 or
/// f16; narrowing rounds to nearest even.
template <class V, class S, class T>
inline void transpose(const S* from, std::ptrdiff_t from_stride, std::int64_t rows, std::int64_t columns,
                      T* to, std::ptrdiff_t to_stride) {
  constexpr int L = V::kLanes;
  const std::int64_t whole = columns / L * L;
  std::int64_t r = 0;
  for (; r + L <= rows; r += L) {
    const S* strip = from + r * from_stride;
    for (std::int64_t c = 0; c < whole; c += L) {
      typename V::F square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = V::load(strip + i * from_stride + c);
      V::transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) V::store(to + (c + i) * to_stride + r, square[i]);
    }
    for (std::int64_t c = whole; c < columns; ++c) {
      for (int i = 0; i < L; ++i)
        to[c * to_stride + r + i] = T(static_cast<float>(strip[i * from_stride + c]));
    }
  }
  for (; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c)
      to[c * to_stride + r] = T(static_cast<float>(from[r * from_stride + c]));
  }
}

}  // namespace inkling::cpu
