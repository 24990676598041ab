// The warpgroup of backward_hopper.cuh that makes the gradients of queries, and the threads that add them up.
#pragma once

#include "attention/cuda/backward_shape.cuh"
#include "attention/cuda/tile.cuh"

namespace inkling::cuda {

/// Stores a block of rows element by element out of shared memory, where a warpgroup has left it by lanes.
template <class T, int kDim>
__device__ inline void store_elements(const HeadRows& to, bool as_f32, const float* block, float factor,
                                      std::int64_t first_row, int rows, int head, int dim) {
  constexpr int kTiles = BackwardHopperShape<kDim>::kQueries / 8;
#pragma unroll 1
  for (int row = 0; row < min(rows, kTiles * 8); ++row) {
    const int column = threadIdx.x % 128;
    if (column >= dim) continue;
    const int tile = column / 64 * kTiles + row / 8;
    const int lane = column % 64 / 16 * kWarp + column % 8 * 4 + row % 8 / 2;
    const float x = block[(tile * 128 + lane) * 4 + column / 8 % 2 * 2 + row % 2] * factor;
    char* const at = row_address(to, first_row + row, head, as_f32 ? 4 : 2);
    if (as_f32) {
      reinterpret_cast<float*>(at)[column] = x;
    } else {
      reinterpret_cast<T*>(at)[column] = from_float<T>(x);
    }
  }
}

/// Stores a block of rows that a warpgroup has transposed, 16-bit and at multiples of 16 bytes, by way of
/// shared memory.
template <class T, int kDim>
__device__ inline void store_block(const HeadRows& to, unsigned char* tile,
                                   const float (&c)[kDim / 64][BackwardHopperShape<kDim>::kQueries / 2],
                                   float factor, std::int64_t first_row, int rows, int head, int dim,
                                   int group) {
  constexpr int kQueries = BackwardHopperShape<kDim>::kQueries, kPieces = kDim / 8;  // of 16 bytes, of a row
  const int thread = threadIdx.x % 128, lane = thread % kWarp;
#pragma unroll
  for (int half = 0; half < kDim / 64; ++half) {
#pragma unroll
    for (int n = 0; n < kQueries / 8; n += 2) {
      std::uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = pack2<T>(c[half][4 * n + 2 * i] * factor, c[half][4 * n + 2 * i + 1] * factor);
      }
      const int row = n * 8 + lane / 16 * 8 + lane % 8, piece = half * 8 + thread / kWarp * 2 + lane / 8 % 2;
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       shared_address(tile) + row * kDim * 2 + (piece ^ row % 8) * 16),
                   "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                   : "memory");
    }
  }
  group_sync(group);
#pragma unroll
  for (int i = thread; i < kQueries * kPieces; i += 128) {
    const int row = i / kPieces, piece = i % kPieces;
    if (row >= rows || piece * 8 >= dim) continue;
    *reinterpret_cast<uint4*>(row_address(to, first_row + row, head, 2) + piece * 16) =
        *reinterpret_cast<const uint4*>(tile + row * kDim * 2 + (piece ^ row % 8) * 16);
  }
  group_sync(group);
}

/// The warpgroup of dQ.
template <class T, int kDim>
__device__ inline void add_queries(const BackwardArgs& a, const BackwardShared<kDim>& shared,
                                   bool wide_grads) {
  using Shape = BackwardHopperShape<kDim>;
  const BackwardSlots<kDim> slots(a);
  constexpr int kQueries = Shape::kQueries, kHalves = Shape::kHalves, kGroup = 2;  // of group_sync()
  const ForwardArgs& f = a.forward;
  const int thread = threadIdx.x % 128;
  const bool as_f32 = a.grad_dtype == DType::f32;
  float c[kHalves][kQueries / 2] = {};  // dQᵀ
  unsigned n = 0, sent = 0;
  for (unsigned t = 0;; ++t) {
    shared.tiles.wait_full(t);
    const BackwardJob& job = shared.jobs[t % 2];
    if (job.steps < 0) return;
    const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, job.queries, job.keys);
    BackwardWalk walk(job);
#pragma unroll 1
    for (int i = 0; i < job.steps; ++i, ++n, walk.next(job)) {
      const int query = walk.block * kQueries;
      unsigned tile = t;
      asm volatile("" : "+r"(tile));  // or addresses of all of K are kept over the loop
      shared.weights.wait_full(n);
#pragma unroll
      for (int half = 0; half < kHalves; ++half) hold(c[half]);
      wgmma_fence();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const std::uint32_t k = matrix_low(shared.k(tile) + half * Shape::kOwnHalf, 16);
        const std::uint32_t ds = matrix_low(shared.ds(n), 16);
#pragma unroll
        for (int j = 0; j < Shape::kKeys / 16; ++j) {
          wgmma<T, 128, 1, 1>(c[half], k + j * 16 * 128 / 16, ds + j * 16 * 128 / 16, j != 0);
        }
      }
      wgmma_commit();
      const BackwardTurn turn(window, job, query, kQueries, Shape::kKeys);
      wgmma_wait<0>();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) hold(c[half]);
      shared.weights.arrive(shared.weights.empty, n);
      // Lane by lane, four sums of each 512 bytes apart: what a lane adds it alone has added before.
      const auto each_four = [&](float4* first, const auto& body) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int j = 0; j < kQueries / 8; ++j) {
            body(first[(half * (kQueries / 8) + j) * 128 + thread], c[half][4 * j], c[half][4 * j + 1],
                 c[half][4 * j + 2], c[half][4 * j + 3]);
          }
        }
      };
      const auto put = [](float4& to, float x, float y, float z, float w) { to = make_float4(x, y, z, w); };
      if (turn.after > 0) {
        shared.sums.wait_empty(sent);
        each_four(reinterpret_cast<float4*>(shared.sum(sent)), put);
        fence_async();
        shared.sums.arrive(shared.sums.full, sent);
        ++sent;
        continue;
      }
      if (turn.before > 0) {
        const std::int64_t slot = slots.slot(walk.head, job.sequence, job.q_begin) + walk.block;
        if (thread % kWarp == 0) await_turn(slots.turns + slot, turn.before);
        __syncwarp();
        each_four(reinterpret_cast<float4*>(slots.sums + slot * slots.kSums),
                  [](const float4& from, float& x, float& y, float& z, float& w) {
                    const float4 before = __ldcg(&from);
                    x += before.x, y += before.y, z += before.z, w += before.w;
                  });
      }
      shared.sums.wait_empty(sent);
      const std::int64_t row = job.q_begin + query;
      if (wide_grads) {
        store_block<T, kDim>(a.dq, shared.sum(sent), c, f.scale, row, job.queries - query, walk.head, f.dim,
                             kGroup);
      } else {
        auto* const block = reinterpret_cast<float4*>(shared.sum(sent));
        each_four(block, put);
        group_sync(kGroup);
        store_elements<T, kDim>(a.dq, as_f32, reinterpret_cast<const float*>(block), f.scale, row,
                                job.queries - query, walk.head, f.dim);
        group_sync(kGroup);
      }
    }
    shared.tiles.arrive(shared.tiles.empty, t);
  }
}

/// A thread that adds dQ in memory, but for the last tile's: one of kSumStages that take blocks in turn, for
/// it takes longer to add a block and to know of it than to make one.
template <int kDim>
__device__ inline void send_queries(const BackwardArgs& a, const BackwardShared<kDim>& shared,
                                    unsigned sender) {
  using Shape = BackwardHopperShape<kDim>;
  const BackwardSlots<kDim> slots(a);
  const ForwardArgs& f = a.forward;
  unsigned sent = 0;
  for (unsigned t = 0;; ++t) {
    shared.tiles.wait_full(t);
    const BackwardJob& job = shared.jobs[t % 2];
    if (job.steps < 0) return;
    const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, job.queries, job.keys);
    BackwardWalk walk(job);
#pragma unroll 1
    for (int i = 0; i < job.steps; ++i, walk.next(job)) {
      const BackwardTurn turn(window, job, walk.block * Shape::kQueries, Shape::kQueries, Shape::kKeys);
      if (turn.after == 0 || sent++ % Shape::kSumStages != sender) continue;
      const unsigned mine = sent - 1;
      const std::int64_t slot = slots.slot(walk.head, job.sequence, job.q_begin) + walk.block;
      if (turn.before > 0) await_turn(slots.turns + slot, turn.before);
      shared.sums.wait_full(mine);
      send_sums(slots.sums + slot * slots.kSums, shared.sum(mine), Shape::kSumBytes, turn.before > 0);
      barrier_arrive(shared.sums.empty + mine % Shape::kSumStages);
      pass_turn(slots.turns + slot, turn.before + 1);
    }
    barrier_arrive(shared.tiles.empty + t % 2);
  }
}

}  // namespace inkling::cuda
