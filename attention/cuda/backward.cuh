// Gradients of attention by recomputation (FlashAttention-2, Alg. 2), two deterministic kernels by mma.sync:
//
//   P = exp₂(c·QKᵀ + mask − lse₂),  dP = dO Vᵀ ∘ Z,  dS = P ∘ (dP − delta),  delta = Σ_d dO ∘ O,  Z = kept /
//   (1 − p) keys kernel     dV = (P ∘ Z)ᵀ dO,  dK = scale · dSᵀ Q       a block owns a tile of keys, walks
//   heads and queries queries kernel  dQ = scale · dS K                           a block owns a tile of
//   queries, walks keys
//
// Both are one loop: the owner's rows stay ("left"), blocks of the other side's rows pass ("right"), scores
// are left × rightᵀ, so that weights come out as the left operand of the next product. Nothing is added
// atomically and each order is fixed. Cost: 14·Tq·Tk·D flops per head, seven products where a single kernel
// would need five. Oracle: tests/attention/cuda/kernels.cu, f64.
// Longer than a header: two kernels that mirror each other are best read side by side.
#pragma once

#include "attention/cuda/launch.h"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"

namespace inkling::cuda {

template <class T, int kDim>
struct BackwardShape {
  static constexpr int kRows = backward_tile_rows(sizeof(T) == 4 ? DType::f32 : DType::bf16, kDim);
  static constexpr int kWarps = kRows / 16, kThreads = kWarps * kWarp;
  static constexpr int kOther = 32;  // rows of a passing block
  /// Of a multiprocessor: two halve the registers, which the plain kernels of small heads can bear.
  template <bool kExtras>
  static constexpr int blocks() {
    return sizeof(T) == 2 && kDim == 64 && !kExtras ? 2 : 1;
  }
  static constexpr int kStride = kDim + Mma<T>::kPad;
  static constexpr int kColumns = kDim > 128 ? 128 : kDim;  // of dK and dV per block; the rest by blockIdx.y
  static constexpr std::size_t bytes(int stages) {
    return sizeof(T) * kStride * (2 * kRows + 2 * kOther * stages) + 2 * sizeof(float) * kOther * stages;
  }
};

/// delta[head, row] = Σ_d dO·O. Eight lanes per (row, head), in pieces of eight elements when those are
/// aligned. Cost: 2·H·N·D elements read, nothing else to speak of.
template <class Out, class Grad>
__global__ void delta_kernel(const __grid_constant__ BackwardArgs a, bool wide) {
  const ForwardArgs& f = a.forward;
  const std::int64_t mine = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 8;
  const std::int64_t count = static_cast<std::int64_t>(f.q_rows) * f.heads, index = min(mine, count - 1);
  const std::int64_t row = index / f.heads, head = index % f.heads;
  const Out* out = reinterpret_cast<const Out*>(row_address(f.out, row, head, sizeof(Out)));
  const Grad* dout = reinterpret_cast<const Grad*>(row_address(a.dout, row, head, sizeof(Grad)));
  float sum = 0.0f;
  if (wide && sizeof(Out) == 2 && sizeof(Grad) == 2) {
    for (int d = threadIdx.x % 8 * 8; d < f.dim; d += 64) {
      const uint4 x = *reinterpret_cast<const uint4*>(out + d), y = *reinterpret_cast<const uint4*>(dout + d);
      const Out* xs = reinterpret_cast<const Out*>(&x);
      const Grad* ys = reinterpret_cast<const Grad*>(&y);
#pragma unroll
      for (int i = 0; i < 16 / static_cast<int>(sizeof(Out)); ++i)
        sum = fmaf(to_float(xs[i]), to_float(ys[i % 8]), sum);
    }
  } else {
    for (int d = threadIdx.x % 8; d < f.dim; d += 8) sum = fmaf(to_float(out[d]), to_float(dout[d]), sum);
  }
#pragma unroll
  for (int d = 4; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d, 8);
  if (threadIdx.x % 8 == 0 && mine < count) static_cast<float*>(a.workspace)[head * f.q_rows + row] = sum;
}

__device__ inline float delta_of(const BackwardArgs& a, std::int64_t head, int row) {
  return static_cast<const float*>(a.workspace)[head * a.forward.q_rows + row];
}

/// Weights and gradients of scores, in place: s becomes P ∘ Z (what the values met), dp becomes dS.
/// kByKey: rows are keys and columns queries; lse (base 2) and delta are those of the columns, in shared
/// memory. Otherwise they are those of the lane's two rows.
template <int kTiles, bool kByKey, bool kExtras>
__device__ inline void differentiate(float (&s)[kTiles][4], float (&dp)[kTiles][4], const BackwardArgs& a,
                                     const ScoreRule& rule, std::uint32_t stream, int row, int column,
                                     bool whole, const float* lse, const float* delta, float* dbias) {
  const ForwardArgs& f = a.forward;
  const float scale = f.scale * kLog2E;
  std::uint32_t kept[kTiles];  // four bits each
#pragma unroll
  for (int n = 0; n < kTiles; ++n) kept[n] = 15u;
  if constexpr (kExtras) {
    if (f.dropout.threshold != 0) {
      const auto read = [&](const auto& bits) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          kept[n] = (bits(n, 0) ? 1u : 0u) | (bits(n, 1) ? 2u : 0u) | (bits(n, 2) ? 4u : 0u) |
                    (bits(n, 3) ? 8u : 0u);
        }
      };
      if constexpr (kByKey) {
        read(KeptByKey<kTiles>(f.dropout, stream, row, column));
      } else {
        read(KeptByQuery<kTiles>(f.dropout, stream, row, column));
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + i / 2 * 8, c = column + n * 8 + threadIdx.x % 4 * 2 + i % 2;
      const int query = kByKey ? c : r, key = kByKey ? r : c;
      const int at = kByKey ? n * 8 + threadIdx.x % 4 * 2 + i % 2 : i / 2;
      float score = s[n][i] * scale;
      if constexpr (kExtras) {
        score = rule.apply(score, query, key);
      } else if (!whole) {
        score = rule.in_window(query, key) ? score : -INFINITY;
      }
      const float weight = exp2_approx(score - lse[at]);
      const float keep = kept[n] >> i & 1u ? f.dropout.scale : 0.0f;
      const float ds = weight * (dp[n][i] * keep - delta[at]);
      s[n][i] = weight * keep;
      dp[n][i] = ds;
      if constexpr (kExtras && !kByKey) {
        if (dbias != nullptr && rule.in_window(query, key))
          dbias[query * rule.mask.row + key * rule.mask.key] = ds;
      }
    }
  }
}

/// lse in base 2; of a row that sees nothing +inf, so that its weights are zero.
__device__ inline float base2(float lse) {
  return lse == -INFINITY ? INFINITY : lse * kLog2E;
}

/// Stores an accumulator's rows (valid of them) times `factor`.
template <class T, int kTiles>
__device__ inline void store_rows(const HeadRows& to, bool as_f32, const float (&c)[kTiles][4], float factor,
                                  std::int64_t first_row, int row, int rows, int head, int column, int dim) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + r * 8 >= rows) continue;
    char* at = row_address(to, first_row + row + r * 8, head, as_f32 ? 4 : sizeof(T));
    const bool paired = dim % 2 == 0 && reinterpret_cast<std::uintptr_t>(at) % (2 * sizeof(T)) == 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      store_pair<T>(at, as_f32, column + n * 8 + threadIdx.x % 4 * 2, dim, paired, c[n][2 * r] * factor,
                    c[n][2 * r + 1] * factor);
    }
  }
}

template <class T, int kDim, bool kExtras>
__global__ void __launch_bounds__(BackwardShape<T, kDim>::kThreads,
                                  BackwardShape<T, kDim>::template blocks<kExtras>())
    backward_queries_kernel(const __grid_constant__ BackwardArgs a, int stages, bool wide) {
  using Shape = BackwardShape<T, kDim>;
  constexpr int kRows = Shape::kRows, kOther = Shape::kOther, kStride = Shape::kStride,
                kThreads = Shape::kThreads;
  constexpr int kTiles = kOther / 8;
  const ForwardArgs& f = a.forward;
  extern __shared__ __align__(128) unsigned char memory[];
  T *q_tile = reinterpret_cast<T*>(memory), *dout_tile = q_tile + kRows * kStride,
    *passing = dout_tile + kRows * kStride;

  const AttentionTile tile = a.query_tiles[blockIdx.x];
  const int b = tile.sequence, head = tile.head, kv_head = head / (f.heads / f.kv_heads);
  const int q_begin = f.cu_q[b], queries = f.cu_q[b + 1] - q_begin, k_begin = f.cu_k[b],
            keys = f.cu_k[b + 1] - k_begin;
  const int first = tile.block * kRows, last = min(first + kRows, queries);
  const ScoreRule rule(f, b, head, queries, keys);
  const RowSpan span = keys_of_queries(rule.window, first, last, keys);
  const int block_begin = span.begin / kOther, block_end = (span.end + kOther - 1) / kOther;
  const T* k_rows = reinterpret_cast<const T*>(row_address(f.k, k_begin, kv_head, sizeof(T)));
  const T* v_rows = reinterpret_cast<const T*>(row_address(f.v, k_begin, kv_head, sizeof(T)));
  const auto load_keys = [&](int block) {
    T* to = passing + block % stages * 2 * kOther * kStride;
    const int j = block * kOther;
    load_tile<T, kOther, kDim, kThreads>(to, k_rows + j * f.k.row, f.k.row, keys - j, f.dim, wide);
    load_tile<T, kOther, kDim, kThreads>(to + kOther * kStride, v_rows + j * f.v.row, f.v.row, keys - j,
                                         f.dim, wide);
    copy_commit();
  };
  load_tile<T, kRows, kDim, kThreads>(
      q_tile, reinterpret_cast<const T*>(row_address(f.q, q_begin + first, head, sizeof(T))), f.q.row,
      last - first, f.dim, wide);
  load_tile<T, kRows, kDim, kThreads>(
      dout_tile, reinterpret_cast<const T*>(row_address(a.dout, q_begin + first, head, sizeof(T))),
      a.dout.row, last - first, f.dim, wide);
  if (block_begin < block_end) load_keys(block_begin);

  const int warp_row = threadIdx.x / kWarp * 16, query = first + warp_row + threadIdx.x % kWarp / 4;
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = query + r * 8;
    lse[r] = row < queries ? base2(f.lse[head * f.lse_head + (q_begin + row) * f.lse_row]) : INFINITY;
    delta[r] = row < queries ? delta_of(a, head, q_begin + row) : 0.0f;
  }
  float* dbias = a.dbias == nullptr ? nullptr : a.dbias + b * rule.mask.batch + head * rule.mask.head;
  float dq[kDim / 8][4] = {};
  for (int block = block_begin; block < block_end; ++block) {
    if (stages == 2 && block + 1 < block_end) {
      load_keys(block + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const T *k_tile = passing + block % stages * 2 * kOther * kStride, *v_tile = k_tile + kOther * kStride;
    float s[kTiles][4] = {}, dp[kTiles][4] = {};
    multiply_rows<T, kDim>(s, q_tile, warp_row, k_tile, kStride);
    multiply_rows<T, kDim>(dp, dout_tile, warp_row, v_tile, kStride);
    const int j = block * kOther;
    differentiate<kTiles, false, kExtras>(s, dp, a, rule, b * f.heads + head, query, j,
                                          all_visible(rule.window, first, last, j, kOther, keys), lse, delta,
                                          dbias);
    multiply_weights<T>(dq, dp, k_tile, kStride, 0);
    __syncthreads();
    if (stages == 1 && block + 1 < block_end) load_keys(block + 1);
  }
  store_rows<T>(a.dq, a.grad_dtype == DType::f32, dq, f.scale, q_begin, query, queries, head, 0, f.dim);
}

template <class T, int kDim, bool kExtras>
__global__ void __launch_bounds__(BackwardShape<T, kDim>::kThreads,
                                  BackwardShape<T, kDim>::template blocks<kExtras>())
    backward_keys_kernel(const __grid_constant__ BackwardArgs a, int stages, bool wide) {
  using Shape = BackwardShape<T, kDim>;
  constexpr int kRows = Shape::kRows, kOther = Shape::kOther, kStride = Shape::kStride,
                kThreads = Shape::kThreads;
  constexpr int kTiles = kOther / 8, kColumns = Shape::kColumns;
  const ForwardArgs& f = a.forward;
  extern __shared__ __align__(128) unsigned char memory[];
  T *k_tile = reinterpret_cast<T*>(memory), *v_tile = k_tile + kRows * kStride,
    *passing = v_tile + kRows * kStride;
  float* stats = reinterpret_cast<float*>(passing + 2 * kOther * kStride * stages);

  const AttentionTile tile = a.key_tiles[blockIdx.x];
  const int b = tile.sequence, kv_head = tile.head, group = f.heads / f.kv_heads,
            column = blockIdx.y * kColumns;
  const int q_begin = f.cu_q[b], queries = f.cu_q[b + 1] - q_begin, k_begin = f.cu_k[b],
            keys = f.cu_k[b + 1] - k_begin;
  const int first = tile.block * kRows, last = min(first + kRows, keys);
  const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, queries, keys);
  const RowSpan span = queries_of_keys(window, first, last, queries);
  const int block_begin = span.begin / kOther, blocks = (span.end + kOther - 1) / kOther - block_begin;
  const int steps = span.count() == 0 ? 0 : blocks * group;  // heads of the group, each over its query blocks
  const auto load_queries = [&](int step) {
    T* to = passing + step % stages * 2 * kOther * kStride;
    float* stat = stats + step % stages * 2 * kOther;
    const int head = kv_head * group + step / blocks, i = (block_begin + step % blocks) * kOther;
    load_tile<T, kOther, kDim, kThreads>(
        to, reinterpret_cast<const T*>(row_address(f.q, q_begin + i, head, sizeof(T))), f.q.row, queries - i,
        f.dim, wide);
    load_tile<T, kOther, kDim, kThreads>(
        to + kOther * kStride, reinterpret_cast<const T*>(row_address(a.dout, q_begin + i, head, sizeof(T))),
        a.dout.row, queries - i, f.dim, wide);
    if (threadIdx.x < kOther) {
      const int row = i + threadIdx.x;
      stat[threadIdx.x] =
          row < queries ? base2(f.lse[head * f.lse_head + (q_begin + row) * f.lse_row]) : INFINITY;
      stat[kOther + threadIdx.x] = row < queries ? delta_of(a, head, q_begin + row) : 0.0f;
    }
    copy_commit();
  };
  load_tile<T, kRows, kDim, kThreads>(
      k_tile, reinterpret_cast<const T*>(row_address(f.k, k_begin + first, kv_head, sizeof(T))), f.k.row,
      last - first, f.dim, wide);
  load_tile<T, kRows, kDim, kThreads>(
      v_tile, reinterpret_cast<const T*>(row_address(f.v, k_begin + first, kv_head, sizeof(T))), f.v.row,
      last - first, f.dim, wide);
  if (steps > 0) load_queries(0);

  const int warp_row = threadIdx.x / kWarp * 16, key = first + warp_row + threadIdx.x % kWarp / 4;
  float dk[kColumns / 8][4] = {}, dv[kColumns / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    if (stages == 2 && step + 1 < steps) {
      load_queries(step + 1);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const T *q_tile = passing + step % stages * 2 * kOther * kStride, *dout_tile = q_tile + kOther * kStride;
    const float* stat = stats + step % stages * 2 * kOther;
    const int head = kv_head * group + step / blocks, i = (block_begin + step % blocks) * kOther;
    float s[kTiles][4] = {}, dp[kTiles][4] = {};
    multiply_rows<T, kDim>(s, k_tile, warp_row, q_tile, kStride);
    multiply_rows<T, kDim>(dp, v_tile, warp_row, dout_tile, kStride);
    const ScoreRule rule(f, b, head, queries, keys);
    differentiate<kTiles, true, kExtras>(
        s, dp, a, rule, b * f.heads + head, key, i,
        all_visible(window, i, i + kOther, first, kRows, keys) && i + kOther <= queries, stat, stat + kOther,
        nullptr);
    multiply_weights<T>(dv, s, dout_tile, kStride, column);
    multiply_weights<T>(dk, dp, q_tile, kStride, column);
    __syncthreads();
    if (stages == 1 && step + 1 < steps) load_queries(step + 1);
  }
  const bool as_f32 = a.grad_dtype == DType::f32;
  store_rows<T>(a.dk, as_f32, dk, f.scale, k_begin, key, keys, kv_head, column, f.dim);
  store_rows<T>(a.dv, as_f32, dv, 1.0f, k_begin, key, keys, kv_head, column, f.dim);
}

}  // namespace inkling::cuda
