// Rows met by fours of neighbours, and by pieces of 16 bytes, the widest access that a thread has.
#pragma once

#include <cstdint>
#include <type_traits>

#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"

namespace inkling::cuda {

template <class T>
__device__ inline const T* row_of(const Matrix& m, std::int64_t row) {
  return static_cast<const T*>(m.data) + row * m.stride;
}
template <class T>
__device__ inline T* mutable_row(const Matrix& m, std::int64_t row) {
  return static_cast<T*>(m.data) + row * m.stride;
}

/// Whether every row begins with a whole four of elements of `size` bytes.
__host__ __device__ inline bool in_fours(const void* data, std::int64_t stride, int size) {
  return stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(data) % (4 * size) == 0;
}
/// Whether rows consist of such fours; an empty matrix does.
inline bool in_fours(const Matrix& m) {
  return m.data == nullptr ||
         (m.columns % 4 == 0 && in_fours(m.data, m.stride, static_cast<int>(dtype_size(m.dtype))));
}

/// Four elements as they lie in memory.
template <class T>
using Four = std::conditional_t<sizeof(T) == 4, float4, uint2>;

template <class T>
__device__ inline Four<T> four_at(const T* at) {
  return *reinterpret_cast<const Four<T>*>(at);
}
template <class T>
__device__ inline void widen(const Four<T>& four, float (&v)[4]) {
  const T* const parts = reinterpret_cast<const T*>(&four);
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = to_float(parts[e]);
}

/// Neighbours [c, c + 4) of a row of n; zeros beyond.
template <class T>
__device__ inline void read4(float (&v)[4], const T* row, std::int64_t c, std::int64_t n, bool fours) {
  if (fours) return widen<T>(four_at(row + c), v);
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = c + e < n ? to_float(row[c + e]) : 0.0f;
}

/// Elements of a piece.
template <class T>
constexpr int kPiece = 16 / sizeof(T);

template <class T>
__device__ inline void unpack(const uint4& piece, float (&v)[kPiece<T>]) {
  const T* const parts = reinterpret_cast<const T*>(&piece);
#pragma unroll
  for (int e = 0; e < kPiece<T>; ++e) v[e] = to_float(parts[e]);
}

template <class T>
__device__ inline uint4 packed(const float (&v)[kPiece<T>]) {
  if constexpr (sizeof(T) == 4) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                      __float_as_uint(v[3]));
  } else {
    return make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
  }
}

}  // namespace inkling::cuda
