// What the warpgroups of backward_hopper.cuh share: shapes, shared memory and its barriers, the tile at hand.
#pragma once

#include <cstdint>

#include "attention/cuda/args.h"
#include "attention/cuda/backward_slots.cuh"
#include "attention/cuda/visible.h"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {

/// What the warpgroups of a block are told of a tile.
struct BackwardJob {
  int sequence, head, first;            // of keys; first row
  int q_begin, k_begin, queries, keys;  // of the sequence
  int block_begin, block_end, heads;    // blocks of queries, of each of the heads
  int steps;                            // in all; negative: there are no more tiles
};

/// kDim: 64, or 128 for heads of more. Tiles in shared memory are halves of 64 columns.
template <int kDim>
struct BackwardHopperShape {
  using Slots = BackwardSlots<kDim>;
  static constexpr int kKeys = 128, kQueries = Slots::kQueries, kRowBytes = 128, kHalves = kDim / 64;
  static constexpr int kStages = kDim > 64 ? 3 : 4, kThreads = 512;
  static constexpr int kFewRegisters = kDim > 64 ? 24 : 32, kSomeRegisters = kDim > 64 ? 72 : 80;
  static constexpr int kManyRegisters = (512 - kFewRegisters - kSomeRegisters) / 2;
  static constexpr int kOwnHalf = kKeys * kRowBytes, kOwnBytes = kHalves * kOwnHalf;
  static constexpr int kPassHalf = kQueries * kRowBytes, kPassBytes = kHalves * kPassHalf;
  static constexpr int kStatBytes = Slots::kStats * 4;
  /// dSᵀ of two blocks: tiles of their own, or halves of the rows of one.
  static constexpr int kScoreStep = kQueries == 64 ? kKeys * kRowBytes : kRowBytes / 2;
  static constexpr int kScoreBytes = kQueries / 32 * kKeys * kRowBytes;
  /// As many as threads that send, so that each waits for one of its own alone.
  static constexpr int kSumStages = kDim > 64 ? 2 : 3, kSumBytes = Slots::kSums * 4;
  static constexpr int kBarriers = 2 * 2 + 2 * kStages + 2 * 2 + 2 * kSumStages;
  static constexpr int kBytes = 4 * kOwnBytes + kStages * (2 * kPassBytes + kStatBytes) + kScoreBytes +
                                kSumStages * kSumBytes + kBarriers * 8 +
                                2 * static_cast<int>(sizeof(BackwardJob));
};

/// kCount buffers that are filled and emptied in turn: barriers that say "full" and ones that say "empty". n
/// counts from the first filling; a waiter is never more than one turn of its buffer away.
template <int kCount>
struct Turns {
  std::uint64_t *full, *empty;
  __device__ void wait_full(unsigned n) const { barrier_wait(full + n % kCount, n / kCount & 1); }
  __device__ void wait_empty(unsigned n) const { barrier_wait(empty + n % kCount, n / kCount + 1 & 1); }
  /// By each warp, once its lanes are done.
  __device__ void arrive(std::uint64_t* barriers, unsigned n) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(barriers + n % kCount);
  }
};

/// Shared memory of a block.
template <int kDim>
struct BackwardShared {
  using Shape = BackwardHopperShape<kDim>;
  // K and V of two tiles; Q and dO of kStages blocks; dSᵀ of two; dQ of kSumStages, on its way to memory.
  unsigned char *own, *pass, *scores, *out;
  float* stats;
  BackwardJob* jobs;
  Turns<2> tiles, weights;
  Turns<Shape::kStages> blocks;
  Turns<Shape::kSumStages> sums;

  __device__ explicit BackwardShared(unsigned char* memory) : own(memory) {
    pass = own + 4 * Shape::kOwnBytes;
    scores = pass + Shape::kStages * 2 * Shape::kPassBytes;
    out = scores + Shape::kScoreBytes;
    stats = reinterpret_cast<float*>(out + Shape::kSumStages * Shape::kSumBytes);
    auto* barriers = reinterpret_cast<std::uint64_t*>(stats + Shape::kStages * Shape::Slots::kStats);
    tiles = {barriers, barriers + 2};
    weights = {barriers + 4, barriers + 6};
    blocks = {barriers + 8, barriers + 8 + Shape::kStages};
    sums = {blocks.empty + Shape::kStages, blocks.empty + Shape::kStages + Shape::kSumStages};
    jobs = reinterpret_cast<BackwardJob*>(barriers + Shape::kBarriers);
  }
  __device__ unsigned char* k(unsigned n) const { return own + n % 2 * 2 * Shape::kOwnBytes; }
  __device__ unsigned char* v(unsigned n) const { return k(n) + Shape::kOwnBytes; }
  __device__ unsigned char* q(unsigned n) const { return pass + n % Shape::kStages * 2 * Shape::kPassBytes; }
  __device__ unsigned char* dout(unsigned n) const { return q(n) + Shape::kPassBytes; }
  __device__ float* stat(unsigned n) const { return stats + n % Shape::kStages * Shape::Slots::kStats; }
  __device__ unsigned char* sum(unsigned n) const { return out + n % Shape::kSumStages * Shape::kSumBytes; }
  __device__ unsigned char* ds(unsigned n) const { return scores + n % 2 * Shape::kScoreStep; }

  __device__ void init() const {
    constexpr int kOfKeys = 8, kOfQueries = 4;  // warps
    for (int i = 0; i < 2; ++i) {
      barrier_init(tiles.full + i, 1);
      barrier_init(tiles.empty + i, kOfKeys + kOfQueries + Shape::kSumStages);
      barrier_init(weights.full + i, kOfKeys);
      barrier_init(weights.empty + i, kOfQueries);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(blocks.full + i, 1);
      barrier_init(blocks.empty + i, kOfKeys);
    }
    for (int i = 0; i < Shape::kSumStages; ++i) {
      barrier_init(sums.full + i, kOfQueries);
      barrier_init(sums.empty + i, 1);
    }
    barrier_init_fence();
    fence_async();
  }
};

/// The blocks of queries of a job in their order: head after head, the last block first.
struct BackwardWalk {
  int head, block;
  __device__ explicit BackwardWalk(const BackwardJob& job)
      : head(job.head * job.heads), block(job.block_end - 1) {}
  __device__ void next(const BackwardJob& job) {
    if (--block < job.block_begin) block = job.block_end - 1, ++head;
  }
};

/// Where a tile stands among those that add to dQ of a block of queries.
struct BackwardTurn {
  int before, after;  // tiles

  __device__ BackwardTurn(const KeyWindow& window, const BackwardJob& job, int query, int queries, int tile) {
    const RowSpan met = keys_of_queries(window, query, min(query + queries, job.queries), job.keys);
    before = job.first / tile - met.begin / tile;
    after = (met.end - 1) / tile - job.first / tile;
  }
};

}  // namespace inkling::cuda
