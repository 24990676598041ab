// Gradients of attention on Hopper (compute capability 9.0), D ≤ 128, by wgmma and tensor copies: five
// products in one kernel, after a small one that reads O and dO (backward_begin.cuh).
//
// A block takes tiles of 128 keys of a head from a counter and keeps their K and V in shared memory; blocks
// of 64 queries (32 for D > 64: Q, dO and their statistics) pass through a ring, the last first. Of its four
// warpgroups
//   one   is a thread that asks for tiles and copies, those of the next tile while this one lasts, and two or
//         three that add dQ of a block of queries to what lower tiles have left of it in memory
//   one   makes that dQᵀ = Kᵀ dSᵀ (backward_queries.cuh)
//   two   have 64 keys each: Sᵀ = K Qᵀ, dPᵀ = V dOᵀ, P and dS in registers, dV += Pᵀ dO, dK += dSᵀ Q, and
//         dSᵀ to shared memory (backward_keys.cuh). Sᵀ and dPᵀ of the next block are issued before dV and dK
//         of this one, so that exponentials and products overlap within a warpgroup too.
// Order: dQ of a block of queries is summed over the tiles of keys that it meets in the order of keys. Each
// tile waits for its turn, which a counter in memory tells; the first stores, the last rounds. So gradients
// are deterministic, and those of a sequence do not depend on the batch. A tile waits for lower ones of its
// head alone, which stand before it in the list: what is waited for has been begun, whichever blocks are on
// the device.
// Cost: 10·Tq·Tk·D flops per head, an exp2 a score, 2 bytes (4 for D > 64) to L2 a score for dQ. Masks that
// are a range of keys; dropout. Oracle: tests/attention/cuda/kernels.cu, f64. Measured:
// attention/cuda/README.md.
#pragma once

#include <cuda.h>

#include "attention/cuda/backward_keys.cuh"
#include "attention/cuda/backward_queries.cuh"
#include "attention/cuda/backward_shape.cuh"
#include "attention/cuda/launch.h"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {

struct BackwardMaps {
  CUtensorMap own[2], pass[2];  // K and V in boxes of kKeys rows, Q and dO in boxes of kQueries
};

template <int kDim>
__device__ inline void describe(BackwardJob& job, const ForwardArgs& f, const AttentionTile& tile) {
  using Shape = BackwardHopperShape<kDim>;
  const int b = tile.sequence, first = tile.block * Shape::kKeys;
  const int q_begin = f.cu_q[b], k_begin = f.cu_k[b];
  const int queries = f.cu_q[b + 1] - q_begin, keys = f.cu_k[b + 1] - k_begin;
  const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, queries, keys);
  const RowSpan span = queries_of_keys(window, first, min(first + Shape::kKeys, keys), queries);
  const int begin = span.begin / Shape::kQueries;
  const int end = span.count() == 0 ? begin : (span.end + Shape::kQueries - 1) / Shape::kQueries;
  const int heads = f.heads / f.kv_heads;
  job = {b, tile.head, first, q_begin, k_begin, queries, keys, begin, end, heads, (end - begin) * heads};
}

/// The thread that asks for tiles, their keys and the queries that they meet.
template <int kDim>
__device__ inline void produce_backward(const BackwardArgs& a, const BackwardMaps& maps,
                                        const BackwardShared<kDim>& shared) {
  using Shape = BackwardHopperShape<kDim>;
  const ForwardArgs& f = a.forward;
  const BackwardSlots<kDim> slots(a);
  const auto tile_count = static_cast<std::uint32_t>(a.key_tile_count);
  std::uint32_t taken = atomicAdd(slots.taken, 1u);
  unsigned t = 0, n = 0;
  for (;; ++t) {
    shared.tiles.wait_empty(t);
    BackwardJob& job = shared.jobs[t % 2];
    if (taken >= tile_count) {
      job.steps = -1;
      barrier_arrive(shared.tiles.full + t % 2);
      return;
    }
    describe<kDim>(job, f, a.key_tiles[taken]);
    std::uint64_t* const own_full = shared.tiles.full + t % 2;
    barrier_expect(own_full, 2 * Shape::kOwnBytes);
#pragma unroll
    for (int half = 0; half < Shape::kHalves; ++half) {
      const int at = half * Shape::kOwnHalf, row = job.k_begin + job.first;
      copy_box(shared.k(t) + at, &maps.own[0], own_full, half * 64, job.head, row);
      copy_box(shared.v(t) + at, &maps.own[1], own_full, half * 64, job.head, row);
    }
    taken = atomicAdd(slots.taken, 1u);
    BackwardWalk walk(job);
#pragma unroll 1
    for (int i = 0; i < job.steps; ++i, ++n, walk.next(job)) {
      std::uint64_t* const full = shared.blocks.full + n % Shape::kStages;
      shared.blocks.wait_empty(n);
      barrier_expect(full, 2 * Shape::kPassBytes + Shape::kStatBytes);
      const int row = job.q_begin + walk.block * Shape::kQueries;
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        const int at = half * Shape::kPassHalf;
        copy_box(shared.q(n) + at, &maps.pass[0], full, half * 64, walk.head, row);
        copy_box(shared.dout(n) + at, &maps.pass[1], full, half * 64, walk.head, row);
      }
      copy_bulk(shared.stat(n),
                slots.stats + (slots.slot(walk.head, job.sequence, job.q_begin) + walk.block) * slots.kStats,
                Shape::kStatBytes, full);
    }
  }
}

template <class T, int kDim, Drawing kDrawing>
__global__ void __launch_bounds__(BackwardHopperShape<kDim>::kThreads, 1)
    backward_hopper_kernel(const __grid_constant__ BackwardArgs a, const __grid_constant__ BackwardMaps maps,
                           bool wide_grads) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = BackwardHopperShape<kDim>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const BackwardShared<kDim> shared(memory);
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  wait_for_inputs();
  const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // uniform
  if (group == 0) {
    give_registers<Shape::kFewRegisters>();
    if (threadIdx.x == 0) produce_backward<kDim>(a, maps, shared);
    const unsigned warp = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp == 0 && warp > 0 && warp <= Shape::kSumStages) {
      send_queries<kDim>(a, shared, warp - 1);
    }
  } else if (group == 1) {
    give_registers<Shape::kSomeRegisters>();
    add_queries<T, kDim>(a, shared, wide_grads);
  } else {
    take_registers<Shape::kManyRegisters>();
    add_keys<T, kDim, kDrawing>(a, shared, group - 2, wide_grads);
  }
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

}  // namespace inkling::cuda
