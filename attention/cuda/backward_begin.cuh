// The kernel before backward_hopper.cuh: delta = Σ_d dO·O of every row, beside its lse, and clean counters.
#pragma once

#include "attention/cuda/backward_slots.cuh"
#include "attention/cuda/launch.h"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {

/// A block per tile of 128 queries of a head, eight lanes a row, two rows a lane at a time: so the whole of a
/// GPT-2 batch is on an H200 at once. `wide`: rows start at multiples of 16 bytes, and all is 16-bit. Also
/// zeroes dQ where a block of queries meets no key, for no tile of keys will write it.
/// Cost: 2·H·N·D elements read.
template <class T, class Out, int kDim>
__global__ void __launch_bounds__(128, kDim > 64 ? 8 : 10)
    backward_begin_kernel(const __grid_constant__ BackwardArgs a, bool wide) {
  constexpr int kRows = 128, kBatch = 2, kStep = 128 / 8, kPieces = kDim / 64;
  const ForwardArgs& f = a.forward;
  const BackwardSlots<kDim> slots(a);
  start_next();
  wait_for_inputs();
  if (blockIdx.x == 0 && threadIdx.x == 0) *slots.taken = 0;
  if (a.query_tile_count == 0) return;
  const AttentionTile tile = a.query_tiles[blockIdx.x];
  const int b = tile.sequence, head = tile.head, q_begin = f.cu_q[b], queries = f.cu_q[b + 1] - q_begin;
  const int keys = f.cu_k[b + 1] - f.cu_k[b], thread = static_cast<int>(threadIdx.x), eighth = thread % 8;
  const int first = tile.block * kRows, rows = min(queries - first, kRows);
  const std::int64_t slot = slots.slot(head, b, q_begin) + first / slots.kQueries;
  const char* const out = row_address(f.out, q_begin + first, head, sizeof(Out));
  const char* const dout = row_address(a.dout, q_begin + first, head, sizeof(T));
  const float* const lse = f.lse + head * f.lse_head + (q_begin + first) * f.lse_row;
#pragma unroll 1
  for (int from = thread / 8; from < kRows; from += kBatch * kStep) {
    float sum[kBatch] = {}, given[kBatch];
    if (sizeof(Out) == 2 && wide) {
      uint4 x[kBatch][kPieces], y[kBatch][kPieces];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = from + i * kStep;
        given[i] = row < rows ? lse[row * f.lse_row] : -INFINITY;
#pragma unroll
        for (int n = 0; n < kPieces; ++n) {
          const int at = n * 64 + eighth * 8;
          const bool inside = row < rows && at < f.dim;
          x[i][n] = inside ? *reinterpret_cast<const uint4*>(out + (row * f.out.row + at) * 2) : uint4{};
          y[i][n] = inside ? *reinterpret_cast<const uint4*>(dout + (row * a.dout.row + at) * 2) : uint4{};
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const T *xs = reinterpret_cast<const T*>(x[i]), *ys = reinterpret_cast<const T*>(y[i]);
#pragma unroll
        for (int d = 0; d < 8 * kPieces; ++d) sum[i] = fmaf(to_float(xs[d]), to_float(ys[d]), sum[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = from + i * kStep;
        given[i] = row < rows ? lse[row * f.lse_row] : -INFINITY;
        if (row >= rows) continue;
        const Out* x = reinterpret_cast<const Out*>(out) + row * f.out.row;
        const T* y = reinterpret_cast<const T*>(dout) + row * a.dout.row;
        for (int d = eighth; d < f.dim; d += 8) sum[i] = fmaf(to_float(x[d]), to_float(y[d]), sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int d = 4; d > 0; d /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], d, 8);
      const int row = from + i * kStep;
      if (eighth != 0 || row / slots.kQueries * slots.kQueries >= rows) continue;  // the next sequence's slot
      float* const stat = slots.stats + (slot + row / slots.kQueries) * slots.kStats + row % slots.kQueries;
      stat[0] = given[i] == -INFINITY ? INFINITY : given[i] * kLog2E;
      stat[slots.kQueries] = sum[i];
    }
  }
  const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, queries, keys);
#pragma unroll 1
  for (int from = 0; from < rows; from += slots.kQueries) {
    if (thread == 0) slots.turns[slot + from / slots.kQueries] = 0;
    const int to = min(from + slots.kQueries, rows);
    if (keys_of_queries(window, first + from, first + to, keys).count() > 0) continue;
    const bool as_f32 = a.grad_dtype == DType::f32;
    for (int row = from + thread / 8; row < to; row += kStep) {
      char* const at = row_address(a.dq, q_begin + first + row, head, as_f32 ? 4 : sizeof(T));
      for (int d = eighth * 2; d < f.dim; d += 16) store_pair<T>(at, as_f32, d, f.dim, false, 0.0f, 0.0f);
    }
  }
}

}  // namespace inkling::cuda
