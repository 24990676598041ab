// A few rows times a few columns of a weight, both whole in shared memory: the tile and the product of a run.
#pragma once

#include "engine/cuda/linear_tile.cuh"

namespace inkling::cuda {

inline constexpr int kMostFewRows = 16;

template <class T, int kN>
struct FewTile {
  using Element = T;
  static constexpr int kRows = kMostFewRows, kColumns = kN;
  static constexpr int kDepth = 128 / static_cast<int>(sizeof(T));  // k of a step
  static constexpr int kPer = 16 / static_cast<int>(sizeof(T));     // elements of a copy
  static constexpr int kSumStride = kN + 8;                         // floats

  static constexpr int steps(std::int64_t k) { return static_cast<int>((k + kDepth - 1) / kDepth); }
  /// Elements between rows of a tile: an odd number of 16 bytes, so that eight rows meet 32 banks.
  static constexpr int stride(std::int64_t k) { return steps(k) * kDepth + kPer; }
  static constexpr std::size_t bytes(std::int64_t rows, std::int64_t k) {
    return sizeof(T) * static_cast<std::size_t>(stride(k)) * static_cast<std::size_t>(kN + rows + 1) +
           sizeof(float) * kRuns * kRows * kSumStride;
  }
};

/// Where a lane meets a run of k: rows of x, and of w by columns of the tile, lie `stride` apart. Rows of the
/// matrix instruction beyond `last` read row `last` of x. kAhead, in 16 bits: a step's fragments are read
/// while the step before it is multiplied, which wants registers.
template <class Tile, bool kAhead = Tile::kColumns == 8>
class RunProduct {
 public:
  using T = typename Tile::Element;

  __device__ RunProduct(const T* x, int last, const T* w, int stride, Run run)
      : w_(w), stride_(stride), begin_(run.begin * Tile::kDepth), end_(run.end * Tile::kDepth) {
    const int lane = threadIdx.x % kWarp;
    if constexpr (sizeof(T) == 2) {
      low_ = high_ = x + min(lane % 16, last) * stride + lane / 16 * 8;
    } else {
      low_ = x + min(lane / 4, last) * stride + lane % 4;
      high_ = x + min(lane / 4 + 8, last) * stride + lane % 4;
    }
  }
  /// c += x · w.
  __device__ void add_to(float (&c)[1][Tile::kColumns / 8][4]) const {
    if constexpr (sizeof(T) == 2 && kAhead) {
      add_ahead(c[0]);
    } else {
      add(c);
    }
  }

 private:
  static constexpr int kTiles = Tile::kColumns / 8;

  struct Step {
    typename Mma<T>::A left[Tile::kDepth / 16];
    std::uint32_t right[kTiles][Tile::kDepth / 32][4];
  };
  __device__ void read(Step& step, int k) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kTiles * Tile::kDepth / 32; ++i) {
      const int tile = i % kTiles, part = i / kTiles;
      ldmatrix_x4(step.right[tile][part],
                  shared_address(w_ + (8 * tile + lane % 8) * stride_ + lane / 8 * 8 + k + 32 * part));
    }
#pragma unroll
    for (int i = 0; i < Tile::kDepth / 16; ++i)
      ldmatrix_x4(step.left[i].r, shared_address(low_ + k + 16 * i));
  }
  __device__ void add_ahead(float (&c)[kTiles][4]) const {
    if (begin_ == end_) return;
    Step now, next;
    read(now, begin_);
#pragma unroll 1
    for (int k = begin_; k < end_; k += Tile::kDepth) {
      read(next, min(k + Tile::kDepth, end_ - Tile::kDepth));  // the last one twice
#pragma unroll
      for (int i = 0; i < Tile::kDepth / 16; ++i) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const std::uint32_t(&right)[4] = now.right[tile][i / 2];
          Mma<T>::multiply(c[tile], now.left[i], {{right[i % 2 * 2], right[i % 2 * 2 + 1]}});
        }
      }
      now = next;
    }
  }

  __device__ void add(float (&c)[1][Tile::kColumns / 8][4]) const {
#pragma unroll 2
    for (int k0 = begin_; k0 < end_; k0 += Tile::kDepth) {
#pragma unroll
      for (int k = k0; k < k0 + Tile::kDepth; k += Mma<T>::kK) {
        typename Mma<T>::A left;
        if constexpr (sizeof(T) == 2) {
          ldmatrix_x4(left.r, shared_address(low_ + k));
        } else {
          left = {{low_[k], high_[k], low_[k + 4], high_[k + 4]}};
        }
        typename Mma<T>::B right[2];
        if constexpr (Tile::kColumns == 16) {
          Mma<T>::load_b_rows(right, w_, stride_, 0, k);
          accumulate<T>(c[0][1], left, right[1]);
        } else {
          Mma<T>::load_b_eight(right[0], w_, stride_, k);
        }
        accumulate<T>(c[0][0], left, right[0]);
      }
    }
  }

  const T *low_, *high_;  // the two halves of a block of x
  const T* w_;
  int stride_, begin_, end_;
};

}  // namespace inkling::cuda
