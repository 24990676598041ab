// Gradients of attention on Hopper (compute capability 9.0), D ≤ 64: the two deterministic kernels of
// backward.cuh by wgmma and tensor copies.
//
// Both kernels are one: the owner's 128 rows stay in shared memory (K and V, or Q and dO), blocks of 64 rows
// of the other side pass through a ring that thread 0 fills. Each of two warpgroups works on 64 of the
// owner's rows:
//   S = own₁ · pass₁ᵀ,  dP = own₂ · pass₂ᵀ,  P and dS in registers,  dV += P · pass₂,  dK (or dQ) += dS ·
//   pass₁
// Rows of keys: own = (K, V), pass = (Q, dO), two sums. Rows of queries: own = (Q, dO), pass = (K, V), one
// sum. Nothing is added atomically and each order is fixed: gradients are deterministic, and those of a
// sequence do not depend on the batch. Cost: 14·Tq·Tk·D flops per head, 2 exp2 a score. Masks that are a
// range of keys; dropout. Oracle: tests/attention/cuda/kernels.cu, f64. Measured: attention/cuda/README.md.
// Longer than a header, and one long function, for the reasons of forward_hopper.cuh.
#pragma once

#include <cuda.h>

#include "attention/cuda/launch.h"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {

struct BackwardMaps {
  CUtensorMap own[2], pass[2];  // boxes of 128 and of 64 rows
};

struct BackwardRing {
  static constexpr int kRows = 128, kOther = 64, kStages = 4, kRowBytes = 128;
  static constexpr int kOwnBytes = kRows * kRowBytes, kPassBytes = kOther * kRowBytes;
  static constexpr int kStatFloats = 2 * 2 * 2 * kOther;  // of each warpgroup: lse and delta of two blocks
  static constexpr int kBytes =
      2 * kOwnBytes + 2 * kStages * kPassBytes + kStatFloats * 4 + (1 + 2 * kStages) * 8;

  /// That share a processor: two sums, or Philox, take more than half of the registers.
  static constexpr int blocks(bool by_key, Drawing drawing) {
    return by_key || drawing == Drawing::here ? 1 : 2;
  }

  unsigned char* tiles;  // of stage s: pass₁ at 2s, pass₂ at 2s + 1
  std::uint64_t *full, *empty;
  int steps = 0, per_head = 0, first_row = 0;  // blocks, of all heads in order, and of each
  int produced = 0, head = 0, block = 0;       // what comes next

  __device__ unsigned char* tile(int n, int which) const {
    return tiles + (n % kStages * 2 + which) * kPassBytes;
  }
  __device__ void produce(const BackwardMaps& maps, int end) {
#pragma unroll 1
    for (; produced < min(end, steps); ++produced) {
      const int stage = produced % kStages, row = first_row + block * kOther;
      if (produced >= kStages) barrier_wait(empty + stage, produced / kStages + 1 & 1);
      barrier_expect(full + stage, 2 * kPassBytes);
      copy_box(tile(produced, 0), &maps.pass[0], full + stage, 0, head, row);
      copy_box(tile(produced, 1), &maps.pass[1], full + stage, 0, head, row);
      next(block, head);
    }
  }
  __device__ void next(int& at_block, int& at_head) const {
    if (++at_block == per_head) at_block = 0, ++at_head;
  }
  __device__ void wait(int n) const {
    barrier_wait(full + n % kStages, n / kStages & 1);
  }
  __device__ void release(int n) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty + n % kStages);
  }
};

/// Issues c = own · passᵀ over 64 columns.
template <class T>
__device__ inline void issue_rows(float (&c)[32], const unsigned char* own, const unsigned char* pass) {
  const std::uint32_t a = matrix_low(own, 16), b = matrix_low(pass, 16);
#pragma unroll
  for (int i = 0; i < 4; ++i) wgmma<T, 128, 0>(c, a + i * 2, b + i * 2, i != 0);
  wgmma_commit();
}

/// Issues c += weights · pass.
template <class T>
__device__ inline void issue_weights(float (&c)[32], const std::uint32_t (&weights)[4][4],
                                     const unsigned char* pass) {
  const std::uint32_t b = matrix_low(pass, 16);
#pragma unroll
  for (int i = 0; i < 4; ++i) wgmma<T, 128, 1>(c, weights[i], b + i * 16 * 128 / 16, 1);
  wgmma_commit();
}

template <class T>
__device__ inline void round_pairs(std::uint32_t (&to)[4][4], const float (&from)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i / 4][i % 4] = pack2<T>(from[2 * i], from[2 * i + 1]);
}

/// Stores 64 rows of a warpgroup, of which `rows` (from its first) exist.
template <class T>
__device__ inline void store_sums(const HeadRows& to, bool as_f32, const float (&c)[32], float factor,
                                  std::int64_t first_row, int rows, int head, int dim) {
  const int lane = threadIdx.x % kWarp, row = threadIdx.x % 128 / kWarp * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r >= rows) continue;
    char* at = row_address(to, first_row + row + 8 * r, head, as_f32 ? 4 : 2);
    const bool paired = reinterpret_cast<std::uintptr_t>(at) % 4 == 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      store_pair<T>(at, as_f32, n * 8 + lane % 4 * 2, dim, paired, c[4 * n + 2 * r] * factor,
                    c[4 * n + 2 * r + 1] * factor);
    }
  }
}

template <class T, bool kByKey, Drawing kDrawing>
__global__ void __launch_bounds__(256, BackwardRing::blocks(kByKey, kDrawing))
    backward_hopper_kernel(const __grid_constant__ BackwardArgs a,
                           const __grid_constant__ BackwardMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Ring = BackwardRing;
  constexpr int kOther = Ring::kOther;
  const ForwardArgs& f = a.forward;
  extern __shared__ __align__(1024) unsigned char memory[];
  Ring ring;
  ring.tiles = memory + 2 * Ring::kOwnBytes;
  float* stats = reinterpret_cast<float*>(ring.tiles + 2 * Ring::kStages * Ring::kPassBytes);
  std::uint64_t* own_full = reinterpret_cast<std::uint64_t*>(stats + Ring::kStatFloats);
  ring.full = own_full + 1;
  ring.empty = ring.full + Ring::kStages;

  // The tile: rows [first, …) of the owner; spans of the other side that it and each warpgroup meet.
  const AttentionTile tile = kByKey ? a.key_tiles[blockIdx.x] : a.query_tiles[blockIdx.x];
  const int b = tile.sequence, shared_by = f.heads / f.kv_heads, q_begin = f.cu_q[b], k_begin = f.cu_k[b];
  const int queries = f.cu_q[b + 1] - q_begin, keys = f.cu_k[b + 1] - k_begin;
  const int own_rows = kByKey ? keys : queries, pass_rows = kByKey ? queries : keys;
  const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, queries, keys);
  const auto meets = [&](int from, int to) {
    if (from >= to) return RowSpan{};
    return kByKey ? queries_of_keys(window, from, to, queries) : keys_of_queries(window, from, to, keys);
  };
  const int first = tile.block * Ring::kRows, group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
  const RowSpan span = meets(first, min(first + Ring::kRows, own_rows));
  const int block_begin = span.begin / kOther;
  ring.per_head = span.count() == 0 ? 0 : (span.end + kOther - 1) / kOther - block_begin;
  ring.steps = ring.per_head * (kByKey ? shared_by : 1);
  ring.first_row = (kByKey ? q_begin : k_begin) + block_begin * kOther;
  ring.head = kByKey ? tile.head * shared_by : tile.head / shared_by;
  int head = kByKey ? tile.head * shared_by : tile.head, block = 0;  // of the query; of what passes
  if (threadIdx.x == 0) {
    barrier_init(own_full, 1);
    for (int i = 0; i < Ring::kStages; ++i) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, 8);
    }
    barrier_init_fence();
    fence_async();
    barrier_expect(own_full, 2 * Ring::kOwnBytes);
    for (int i = 0; i < 2; ++i) {
      copy_box(memory + i * Ring::kOwnBytes, &maps.own[i], own_full, 0, tile.head,
               (kByKey ? k_begin : q_begin) + first);
    }
    ring.produce(maps, Ring::kStages);
  }
  __syncthreads();

  const int my_first = first + group * 64;
  const int lane = threadIdx.x % kWarp, row = my_first + threadIdx.x % 128 / kWarp * 16 + lane / 4;
  const unsigned char* own = memory + group * 64 * Ring::kRowBytes;
  const float scale = f.scale * kLog2E;
  float* my_stats = stats + group * 4 * kOther;  // of even blocks, then of odd ones
  // lse and delta of a query: of rows beyond the sequence such that weights are zero.
  const auto lse_of = [&](int of, int query) {
    return query < queries ? f.lse[of * f.lse_head + (q_begin + query) * f.lse_row] : -INFINITY;
  };
  const auto delta_of = [&](int of, int query) {
    return query < queries ? a.delta[static_cast<std::int64_t>(of) * f.q_rows + q_begin + query] : 0.0f;
  };
  const auto base2 = [](float lse) { return lse == -INFINITY ? INFINITY : lse * kLog2E; };
  const bool fetches_lse = threadIdx.x % 128 < kOther;  // half of the threads; the others fetch delta
  const auto stat_of = [&](int of, int at_block) {
    const int query = (block_begin + at_block) * kOther + threadIdx.x % kOther;
    return fetches_lse ? lse_of(of, query) : delta_of(of, query);
  };
  float row_lse[2] = {}, row_delta[2] = {}, next_stat = 0.0f;
  if constexpr (kByKey) {
    if (ring.steps > 0) next_stat = stat_of(head, 0);
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_lse[r] = base2(lse_of(head, row + 8 * r));
      row_delta[r] = delta_of(head, row + 8 * r);
    }
  }

  DrawnBits bits;
  DrawnRows<8> drawn;
  if constexpr (kDrawing == Drawing::before) bits = {f.dropout, kByKey, b, head, queries, keys};
  const std::int64_t next_head = kDrawing == Drawing::before ? drawn_words(queries, keys) : 0;

  float s[32] = {}, dp[32] = {}, sum_p[32] = {}, sum_ds[32] = {};
  std::uint32_t weights[4][4], values[4][4];
  barrier_wait(own_full, 0);
  // Block n is there, and so are its statistics; `block` and `head` are the next block's.
  int other = 0, of_head = head;
  const auto prepare = [&](int n) {
    other = (block_begin + block) * kOther;
    if constexpr (kDrawing == Drawing::before) {
      if (head != of_head) bits.bits += next_head;
      drawn.read(bits, row, other);
    }
    of_head = head;
    if constexpr (kByKey) {
      ring.next(block, head);
    } else {
      ++block;
    }
    ring.wait(n);
    if constexpr (kByKey) {
      my_stats[n % 2 * 2 * kOther + threadIdx.x % 128] = fetches_lse ? base2(next_stat) : next_stat;
      if (n + 1 < ring.steps) next_stat = stat_of(head, block);
    }
    const bool tail = other + kOther > pass_rows;
    if (tail) {  // rows beyond the sequence may be NaN
      for (int i = (pass_rows - other) * 8 + threadIdx.x % 128; i < kOther * 8; i += 128) {
        reinterpret_cast<uint4*>(ring.tile(n, 0))[i] = {0, 0, 0, 0};
        reinterpret_cast<uint4*>(ring.tile(n, 1))[i] = {0, 0, 0, 0};
      }
      fence_async();
    }
    if (kByKey || tail) group_sync(group);
  };
  if (ring.steps > 0) prepare(0);
#pragma unroll 1
  for (int n = 0; n < ring.steps; ++n) {
    const float* stat = my_stats + n % 2 * 2 * kOther;
    wgmma_fence();
    issue_rows<T>(s, own, ring.tile(n, 0));
    issue_rows<T>(dp, own + Ring::kOwnBytes, ring.tile(n, 1));
    if (threadIdx.x == 0) ring.produce(maps, n + Ring::kStages - 1);  // behind the last release
    wgmma_wait<1>();
    hold(s);
    // Visible columns of rows r: [low, high), counted from this lane's first.
    const int column = other + lane % 4 * 2;
    const bool whole =
        kByKey ? all_visible(window, other, other + kOther, my_first, 64, keys) && other + kOther <= queries
               : all_visible(window, my_first, my_first + 64, other, kOther, keys);
    if (!whole) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = row + 8 * r;
        const int low = (kByKey ? at - window.until + 1 : at + window.from) - column;
        const int high =
            (kByKey ? min(at - window.from + 1, queries) : min(at + window.until, keys)) - column;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[4 * i + 2 * r + e];
            x = i * 8 + e >= low && i * 8 + e < high ? x : -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float lse = kByKey ? stat[i * 8 + lane % 4 * 2 + e % 2] : row_lse[e / 2];
        s[4 * i + e] = exp2_approx(fmaf(s[4 * i + e], scale, -lse));
      }
    }
    hold(s);
    wgmma_wait<0>();
    hold(dp);
    if constexpr (kDrawing != Drawing::none) {
      const std::uint32_t stream = b * f.heads + of_head;
      const auto drop = [&](const auto& factor) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          const float keep = factor(i / 4, i % 4);
          const float delta = kByKey ? stat[kOther + i / 4 * 8 + lane % 4 * 2 + i % 2] : row_delta[i % 4 / 2];
          dp[i] = s[i] * (dp[i] * keep - delta);
          s[i] *= keep;
        }
      };
      const auto drop_drawn = [&](const auto& kept) {
        drop([&](int n, int i) { return kept(n, i) ? f.dropout.scale : 0.0f; });
      };
      if constexpr (kDrawing == Drawing::before) {
        drop([&](int n, int i) {
          return __uint_as_float(drawn.element(n, i) & __float_as_uint(f.dropout.scale));
        });
      } else if constexpr (kByKey) {
        drop_drawn(KeptByKey<8>(f.dropout, stream, row, other));
      } else {
        drop_drawn(KeptByQuery<8>(f.dropout, stream, row, other));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const float delta = kByKey ? stat[kOther + i / 4 * 8 + lane % 4 * 2 + i % 2] : row_delta[i % 4 / 2];
        dp[i] = s[i] * (dp[i] - delta);
      }
    }
    if constexpr (kByKey) {
      round_pairs<T>(values, s);
      round_pairs<T>(weights, dp);
      hold(sum_p);
      hold(sum_ds);
      wgmma_fence();
      issue_weights<T>(sum_p, values, ring.tile(n, 1));
      issue_weights<T>(sum_ds, weights, ring.tile(n, 0));
    } else {
      round_pairs<T>(weights, dp);
      hold(sum_ds);
      wgmma_fence();
      issue_weights<T>(sum_ds, weights, ring.tile(n, 0));
    }
    if (n + 1 < ring.steps) prepare(n + 1);  // while the products run
    wgmma_wait<0>();
    if constexpr (kByKey) hold(sum_p);
    hold(sum_ds);
    ring.release(n);
  }

  const bool as_f32 = a.grad_dtype == DType::f32;
  const std::int64_t out_row = (kByKey ? k_begin : q_begin) + my_first;
  store_sums<T>(kByKey ? a.dk : a.dq, as_f32, sum_ds, f.scale, out_row, own_rows - my_first, tile.head,
                f.dim);
  if constexpr (kByKey)
    store_sums<T>(a.dv, as_f32, sum_p, 1.0f, out_row, own_rows - my_first, tile.head, f.dim);
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

}  // namespace inkling::cuda
