// Tiles of rows between device memory and shared memory.
#pragma once

#include <cstdint>

#include "attention/cuda/args.h"
#include "engine/cuda/element.cuh"
#include "engine/cuda/mma.cuh"

namespace inkling::cuda {

/// Copies rows [0, valid) of `from` into a shared tile of kRows × kDim (row stride kDim + pad); rows and
/// columns beyond are zero. `wide`: everything is 16-byte aligned and the copy is asynchronous; otherwise
/// element by element.
template <class T, int kRows, int kDim, int kThreads>
__device__ inline void load_tile(T* tile, const T* from, std::int64_t row_stride, int valid, int dim,
                                 bool wide) {
  constexpr int kStride = kDim + Mma<T>::kPad;
  if (wide) {
    constexpr int kPer = 16 / sizeof(T), kChunks = kDim / kPer;
#pragma unroll 4
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, column = i % kChunks * kPer;
      const bool inside = row < valid && column < dim;
      copy16_async(tile + row * kStride + column, inside ? from + row * row_stride + column : from, inside);
    }
  } else {
    for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
      const int row = i / kDim, column = i % kDim;
      tile[row * kStride + column] =
          row < valid && column < dim ? from[row * row_stride + column] : from_float<T>(0.0f);
    }
  }
}

/// Stores two neighbouring elements of a row as T or f32.
template <class T>
__device__ inline void store_pair(void* row, bool as_f32, int column, int dim, bool paired, float x,
                                  float y) {
  if (as_f32) {
    float* to = static_cast<float*>(row) + column;
    if (column < dim) to[0] = x;
    if (column + 1 < dim) to[1] = y;
  } else if (paired) {
    if (column < dim) {
      if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<std::uint32_t*>(static_cast<T*>(row) + column) = pack2<T>(x, y);
      } else {
        *reinterpret_cast<float2*>(static_cast<T*>(row) + column) = make_float2(x, y);
      }
    }
  } else {
    T* to = static_cast<T*>(row) + column;
    if (column < dim) to[0] = from_float<T>(x);
    if (column + 1 < dim) to[1] = from_float<T>(y);
  }
}

__device__ inline char* row_address(const HeadRows& rows, std::int64_t row, std::int64_t head,
                                    std::size_t size) {
  return static_cast<char*>(rows.data) +
         (row * rows.row + head * rows.head) * static_cast<std::int64_t>(size);
}

/// The keys or values of one (sequence, key/value head): where rows 64·block … start, and how far rows are
/// apart.
template <class T>
struct KeyRows {
  const T* base = nullptr;
  const std::byte* const* pages = nullptr;
  std::int64_t offset = 0;  // bytes within a page
  std::int64_t stride = 0;  // elements

  __device__ KeyRows(const ForwardArgs& a, const HeadRows& rows, std::int64_t page_offset, int sequence,
                     std::int64_t first, int head) {
    if (a.pages.table == nullptr) {
      base = static_cast<const T*>(rows.data) + first * rows.row + head * rows.head;
      stride = rows.row;
    } else {
      pages = a.pages.table + sequence * a.pages.table_stride;
      offset = page_offset + head * a.pages.head * static_cast<std::int64_t>(sizeof(T));
      stride = a.pages.token;
    }
  }
  /// Row j; the rows up to the next multiple of 64 follow at `stride`.
  const __device__ T* at(int j) const {
    if (pages == nullptr) return base + j * stride;
    return reinterpret_cast<const T*>(pages[j / 64] + offset) + j % 64 * stride;
  }
};

__device__ inline int keys_in(const ForwardArgs& a, int sequence) {
  return a.pages.table == nullptr ? a.cu_k[sequence + 1] - a.cu_k[sequence] : a.k_length[sequence];
}

}  // namespace inkling::cuda
