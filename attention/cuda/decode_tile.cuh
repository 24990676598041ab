// What a warp of the decode kernel works on, and how it comes into shared memory: queries, keys and values
// from packed rows or pages, and new rows on their way into their pages.
#pragma once

#include "attention/cuda/forward_mma.cuh"

namespace inkling::cuda {

template <class T, int kDim>
struct DecodeTile {
  static constexpr int kRows = 16, kStride = kDim + Mma<T>::kPad;
  static constexpr int kChunk = 2 * kDecodeChunk * kStride;  // elements of K and V of a chunk
  static constexpr int kBytes = (kChunk + kRows * kStride) * static_cast<int>(sizeof(T));
};

/// The share of one warp. Row r is query r / group with query head r % group of those that share the head of
/// keys.
struct DecodeUnit {
  int sequence, kv_head, chunk, chunks, queries, keys, q_begin, group, rows;
  std::int64_t partial;  // index of (sequence, kv_head, row 0, chunk 0)

  __device__ int head(int row) const { return kv_head * group + row % group; }
  __device__ int query(int row) const { return row / group; }
};

/// 16 bytes of a row, or as many elements of it as there are; zero otherwise.
template <class T, bool kGeneral>
__device__ inline void copy_piece(T* to, const T* from, int left, bool wide) {
  if constexpr (kGeneral) {
    if (!wide) {
#pragma unroll 1
      for (int e = 0; e < static_cast<int>(16 / sizeof(T)); ++e)
        to[e] = e < left ? from[e] : from_float<T>(0.0f);
      return;
    }
  }
  copy16_async(to, from, left > 0);
}

/// The rows of one (sequence, key/value head) that start at `from`, `rows` of them, into a tile; the rest is
/// zero.
template <class T, int kDim, bool kGeneral>
__device__ inline void copy_keys(T* tile, const T* from, std::int64_t stride, int rows, int dim, bool wide) {
  constexpr int kPer = 16 / sizeof(T), kPieces = kDim / kPer, kStride = DecodeTile<T, kDim>::kStride;
  constexpr int kAtOnce = kPieces < kWarp ? kWarp / kPieces : 1,
                kTurns = kPieces > kWarp ? kPieces / kWarp : 1;
  const int lane = threadIdx.x % kWarp, first = lane / kPieces, column = lane % kPieces * kPer;
  from += first * stride + column;
  tile += first * kStride + column;
#pragma unroll
  for (int row = 0; row < kDecodeChunk; row += kAtOnce) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int at = turn * kWarp * kPer;
      copy_piece<T, kGeneral>(tile + row * kStride + at, from + at,
                              row + first < rows ? dim - column - at : 0, wide);
    }
    from += kAtOnce * stride;
  }
}

/// The keys [begin, end) of a warp that are not in their pages yet: key j is row base + j of the fresh rows.
struct FreshUnit {
  int begin, end, base;
  int tile;  // the first key of the tile that the warp has begun with
};

/// Puts fresh rows into their pages, and those of the tile, which holds the older ones already, there, too.
template <class T, int kDim, bool kGeneral>
__device__ inline void take_fresh(T* tile, const ForwardArgs& a, const DecodeUnit& unit,
                                  const HeadRows& source, const KeyRows<T>& pages, const FreshUnit& fresh,
                                  bool wide) {
  constexpr int kPer = 16 / sizeof(T), kPieces = kDim / kPer;
#pragma unroll 1
  for (int i = threadIdx.x % kWarp; i < (fresh.end - fresh.begin) * kPieces; i += kWarp) {
    const int j = fresh.begin + i / kPieces, column = i % kPieces * kPer, left = a.dim - column;
    if (left <= 0) continue;
    const T* from =
        reinterpret_cast<const T*>(row_address(source, fresh.base + j, unit.kv_head, sizeof(T))) + column;
    if (j - fresh.tile < kDecodeChunk) {
      copy_piece<T, kGeneral>(tile + (j - fresh.tile) * DecodeTile<T, kDim>::kStride + column, from, left,
                              wide);
    }
    T* const to = const_cast<T*>(pages.at(j)) + column;
    if (!kGeneral || wide) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int e = 0; e < min(left, kPer); ++e) to[e] = from[e];
    }
  }
}

/// The query rows of a unit into a tile of 16.
template <class T, int kDim, bool kGeneral>
__device__ inline void copy_queries(T* tile, const ForwardArgs& a, const DecodeUnit& unit, bool wide) {
  constexpr int kPer = 16 / sizeof(T), kPieces = kDim / kPer;
#pragma unroll 1
  for (int i = threadIdx.x % kWarp; i < DecodeTile<T, kDim>::kRows * kPieces; i += kWarp) {
    const int row = i / kPieces, column = i % kPieces * kPer;
    const T* from = reinterpret_cast<const T*>(
        row_address(a.q, unit.q_begin + unit.query(row), unit.head(row), sizeof(T)));
    copy_piece<T, kGeneral>(tile + row * DecodeTile<T, kDim>::kStride + column, from + column,
                            row < unit.rows ? a.dim - column : 0, wide);
  }
}

}  // namespace inkling::cuda
