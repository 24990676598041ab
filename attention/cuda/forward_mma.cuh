// Flash attention forward by mma.sync: right on every GPU from sm_80, every mask and shape.
//
//   out = softmax₂(c · Q Kᵀ + mask) V,   c = scale · log₂e
//
// A block takes one tile of query rows of one head; a warp 16 rows of it. Keys come in fixed blocks of kKeys
// from position 0, double-buffered by cp.async when shared memory allows. Online softmax in base 2 (Milakov &
// Gimelshein 2018; Dao 2023, Alg. 1), f32 sums; weights are rounded to T for the second product. A row's bits
// depend on nothing but its own inputs: blocks where it sees nothing add exact zeros. Cost: 4·Tq·Tk·D flops
// per head; shared-memory reads bound it at about half of the tensor cores' rate. Oracle:
// tests/attention/cuda/kernels.cu, f64.
#pragma once

#include "attention/cuda/launch.h"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {

template <class T, int kDim>
struct ForwardShape {
  static constexpr int kWarps = forward_tile_rows(sizeof(T) == 4 ? DType::f32 : DType::bf16) / 16;
  static constexpr int kThreads = kWarps * kWarp, kRows = kWarps * 16;
  static constexpr int kKeys = sizeof(T) == 4 || kDim > 128 ? 32 : 64;
  static constexpr int kStride = kDim + Mma<T>::kPad;
  static constexpr std::size_t bytes(int stages) {
    return sizeof(T) * kStride * (kRows + 2 * kKeys * stages);
  }
};

/// The running state of the two rows (g, g + 8) of a lane.
struct SoftmaxRows {
  float top[2] = {-INFINITY, -INFINITY};  // running maximum, base-2 units
  float sum[2] = {0.0f, 0.0f};            // of this lane's columns
};

/// Turns scores into weights against the new maximum; returns by what sums so far must be scaled.
template <int kTiles>
__device__ inline void online_softmax(float (&s)[kTiles][4], SoftmaxRows& state, float (&rescale)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    top = fmaxf(top, state.top[r]);
    const float reference = top == -INFINITY ? 0.0f : top;
    rescale[r] = exp2_approx(state.top[r] - reference);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      s[n][2 * r] = exp2_approx(s[n][2 * r] - reference);
      s[n][2 * r + 1] = exp2_approx(s[n][2 * r + 1] - reference);
      sum += s[n][2 * r] + s[n][2 * r + 1];
    }
    state.sum[r] = state.sum[r] * rescale[r] + sum;
    state.top[r] = top;
  }
}

/// Scales scores to base 2 and applies the mask where the block needs it.
template <int kTiles, bool kExtras>
__device__ inline void mask_scores(float (&s)[kTiles][4], const ScoreRule& rule, float scale, int query,
                                   int key, bool whole) {
  const int column = key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n][i] *= scale;
      const int q = query + i / 2 * 8, k = column + n * 8 + i % 2;
      if constexpr (kExtras) {
        s[n][i] = rule.apply(s[n][i], q, k);
      } else if (!whole) {
        s[n][i] = rule.in_window(q, k) ? s[n][i] : -INFINITY;
      }
    }
  }
}

template <class T, int kDim, bool kExtras>
__global__ void __launch_bounds__(ForwardShape<T, kDim>::kThreads,
                                  sizeof(T) == 2 && kDim == 64 && !kExtras ? 2 : 1)
    forward_mma_kernel(const __grid_constant__ ForwardArgs a, int stages, bool wide) {
  using Shape = ForwardShape<T, kDim>;
  constexpr int kKeys = Shape::kKeys, kStride = Shape::kStride, kThreads = Shape::kThreads;
  extern __shared__ __align__(128) unsigned char memory[];
  T* q_tile = reinterpret_cast<T*>(memory);
  T* kv_tiles = q_tile + Shape::kRows * kStride;

  start_next();
  wait_for_inputs();
  const AttentionTile tile = a.tiles[blockIdx.x];
  const int b = tile.sequence, head = tile.head, q_begin = a.cu_q[b];
  const int queries = a.cu_q[b + 1] - q_begin, keys = keys_in(a, b);
  const int first = tile.block * Shape::kRows, last = min(first + Shape::kRows, queries);
  const ScoreRule rule(a, b, head, queries, keys);
  const RowSpan span = keys_of_queries(rule.window, first, last, keys);
  const int block_begin = span.begin / kKeys, block_end = (span.end + kKeys - 1) / kKeys;

  const int kv_head = head / (a.heads / a.kv_heads), k_begin = a.pages.table == nullptr ? a.cu_k[b] : 0;
  const KeyRows<T> k_rows(a, a.k, a.pages.k_offset, b, k_begin, kv_head);
  const KeyRows<T> v_rows(a, a.v, a.pages.v_offset, b, k_begin, kv_head);
  const auto load_keys = [&](int block) {
    T* k_tile = kv_tiles + block % stages * 2 * kKeys * kStride;
    const int j = block * kKeys;
    load_tile<T, kKeys, kDim, kThreads>(k_tile, k_rows.at(j), k_rows.stride, keys - j, a.dim, wide);
    load_tile<T, kKeys, kDim, kThreads>(k_tile + kKeys * kStride, v_rows.at(j), v_rows.stride, keys - j,
                                        a.dim, wide);
    copy_commit();
  };

  load_tile<T, Shape::kRows, kDim, kThreads>(
      q_tile, reinterpret_cast<const T*>(row_address(a.q, q_begin + first, head, sizeof(T))), a.q.row,
      last - first, a.dim, wide);
  if (block_begin < block_end) load_keys(block_begin);

  const int warp_row = threadIdx.x / kWarp * 16, query = first + warp_row + threadIdx.x % kWarp / 4;
  const float scale = a.scale * kLog2E;
  SoftmaxRows state;
  float out[kDim / 8][4] = {};
  for (int block = block_begin; block < block_end; ++block) {
    if (stages == 2 && block + 1 < block_end) {
      load_keys(block + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const T* k_tile = kv_tiles + block % stages * 2 * kKeys * kStride;
    float s[kKeys / 8][4] = {};
    multiply_rows<T, kDim>(s, q_tile, warp_row, k_tile, kStride);
    const int j = block * kKeys;
    mask_scores<kKeys / 8, kExtras>(s, rule, scale, query, j,
                                    all_visible(rule.window, first, last, j, kKeys, keys));
    float rescale[2];
    online_softmax(s, state, rescale);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= rescale[i / 2];
    }
    if constexpr (kExtras) {
      if (a.dropout.threshold != 0) {
        const KeptByQuery<kKeys / 8> kept(a.dropout, b * a.heads + head, query, j);
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) s[n][i] = kept(n, i) ? s[n][i] : 0.0f;
        }
      }
    }
    multiply_weights<T>(out, s, k_tile + kKeys * kStride, kStride, 0);
    __syncthreads();
    if (stages == 1 && block + 1 < block_end) load_keys(block + 1);
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int row = query + r * 8;
    if (row >= queries) continue;
    if (a.lse != nullptr && threadIdx.x % 4 == 0) {
      a.lse[head * a.lse_head + (q_begin + row) * a.lse_row] =
          sum == 0.0f ? -INFINITY : (state.top[r] + log2f(sum)) * kLn2;
    }
    const float inverse = sum == 0.0f ? 0.0f : a.dropout.scale / sum;
    const bool as_f32 = a.out_dtype == DType::f32;
    char* to = row_address(a.out, q_begin + row, head, as_f32 ? 4 : sizeof(T));
    const bool paired = a.dim % 2 == 0 && reinterpret_cast<std::uintptr_t>(to) % (2 * sizeof(T)) == 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      store_pair<T>(to, as_f32, n * 8 + threadIdx.x % 4 * 2, a.dim, paired, out[n][2 * r] * inverse,
                    out[n][2 * r + 1] * inverse);
    }
  }
}

}  // namespace inkling::cuda
