// A tile of x · weightᵀ by wgmma and the tensor copy engine (compute capability 9.0), for linear_hopper.cu.
//
// One warp brings steps of x and of the weight, 64 deep and swizzled, into a ring of stages, the weight's
// first ones before it waits for the kernel that makes x (chain.cuh); each other warpgroup multiplies 64
// rows. What bounds it, measured: a processor takes in 64 bytes a cycle, and a round of the ring is some
// 2,000 cycles, so that a tile wants all the stages that fit.
#pragma once

#include "engine/cuda/chain.cuh"
#include "engine/cuda/hopper_tiles.h"
#include "engine/cuda/linear_tile.cuh"
#include "engine/cuda/tensor_map.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {

/// Of kHopperTiles[kIndex].
template <class T, std::size_t kIndex>
struct HopperTile {
  using Element = T;
  static constexpr HopperTileShape kShape = kHopperTiles[kIndex];
  static constexpr int kRows = kShape.rows(), kColumns = kShape.columns, kStages = kShape.stages;
  static constexpr int kSplits = kShape.splits, kRunsHere = kRuns / kSplits;
  static constexpr int kDepth = 64, kRowBytes = 128;
  static constexpr int kConsumers = 128 * kShape.groups, kThreads = kConsumers + 128;
  // Registers of a thread that brings and of one that multiplies, where the even share is too few.
  static constexpr bool kUneven = kShape.groups > 1 && kColumns > 64;
  [[maybe_unused]] static constexpr int kFewRegisters = 40, kManyRegisters = 232;
  static constexpr int kStage = kShape.stage_bytes(), kBytes = kShape.bytes();
  static constexpr int kSumStride = kColumns + 8;  // floats between rows of sums
  static_assert(kRows * kSumStride * static_cast<int>(sizeof(float)) <= kBytes);
  static_assert(kRuns % kSplits == 0 && kRows % kSplits == 0);
};

/// The stages of a block and who may use them.
template <class Tile>
struct StageRing {
  unsigned char* memory;
  std::uint64_t *full, *empty;  // kStages each

  __device__ unsigned char* x(int i) const { return memory + i % Tile::kStages * Tile::kStage; }
  __device__ unsigned char* w(int i) const { return x(i) + Tile::kRows * Tile::kRowBytes; }
  __device__ std::uint64_t* full_of(int i) const { return full + i % Tile::kStages; }
  __device__ std::uint64_t* empty_of(int i) const { return empty + i % Tile::kStages; }
  __device__ static int turn(int i) { return i / Tile::kStages & 1; }

  /// One thread.
  __device__ void init() const {
    for (int i = 0; i < Tile::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, Tile::kConsumers / kWarp);
    }
    barrier_init_fence();
    fence_async();
  }
};

/// One thread: steps [begin, end) of both operands.
template <class Tile>
__device__ inline void produce(const StageRing<Tile>& ring, const CUtensorMap& x_map,
                               const CUtensorMap& w_map, int row, int column, int begin, int end) {
  const int count = end - begin, early = min(count, Tile::kStages);
  const auto bring_w = [&](int i) {
    barrier_expect(ring.full_of(i), Tile::kStage);
    copy_box(ring.w(i), &w_map, ring.full_of(i), (begin + i) * Tile::kDepth, 0, column);
  };
  const auto bring_x = [&](int i) {
    copy_box(ring.x(i), &x_map, ring.full_of(i), (begin + i) * Tile::kDepth, 0, row);
  };
  for (int i = 0; i < early; ++i) bring_w(i);
  wait_for_inputs();
  for (int i = 0; i < early; ++i) bring_x(i);
  for (int i = early; i < count; ++i) {
    barrier_wait(ring.empty_of(i), ring.turn(i) ^ 1);
    bring_w(i);
    bring_x(i);
  }
}

/// A warpgroup: the sums of runs [first, first + kRunsHere) of its 64 rows, each a chain of matrix
/// instructions from zero, added in order.
template <class Tile>
__device__ inline void sum_runs(const StageRing<Tile>& ring, int first, int steps,
                                float (&total)[Tile::kColumns / 2]) {
  constexpr int kCount = Tile::kColumns / 2;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0), lane = threadIdx.x % kWarp;
  const auto release = [&](int i) {
    if (lane == 0) barrier_arrive(ring.empty_of(i));
  };
  float c[kCount] = {};
#pragma unroll
  for (int e = 0; e < kCount; ++e) total[e] = 0.0f;
  int i = 0;
  for (int r = first; r < first + Tile::kRunsHere; ++r) {
    const Run run = run_of(r, steps);
    if (run.begin == run.end) continue;
    hold(c);
    for (int step = run.begin; step < run.end; ++step, ++i) {
      barrier_wait(ring.full_of(i), ring.turn(i));
      const std::uint32_t x = matrix_low(ring.x(i) + warp / 4 * 64 * Tile::kRowBytes, 16),
                          w = matrix_low(ring.w(i), 16);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Tile::kDepth / 16; ++k) {
        wgmma<typename Tile::Element, Tile::kRowBytes, 0>(c, x + 2 * k, w + 2 * k,
                                                          step != run.begin || k != 0);
      }
      wgmma_commit();
      if (step == run.begin) continue;
      wgmma_wait<1>();
      release(i - 1);
    }
    wgmma_wait<0>();
    hold(c);
    release(i - 1);
#pragma unroll
    for (int e = 0; e < kCount; ++e) total[e] += c[e];
  }
}

/// The tensor maps of a product.
struct ProductMaps {
  CUtensorMap x, w;
};
template <class Tile>
cudaError_t encode(ProductMaps& maps, const Linear& a) {
  const auto tensor = [](const Matrix& m) {
    return TensorRows{m.data, m.dtype, m.stride, m.stride, m.rows, 1, m.columns};
  };
  EncodeTiled encoder = nullptr;
  Matrix x = a.x;
  x.rows = a.out.rows;
  cudaError_t error = find_encoder(encoder);
  if (error == cudaSuccess) error = encode_rows(encoder, maps.x, tensor(x), Tile::kRows, Tile::kDepth);
  if (error != cudaSuccess) return error;
  return encode_rows(encoder, maps.w, tensor(a.weight), Tile::kColumns, Tile::kDepth);
}

}  // namespace inkling::cuda
