// Flash attention forward on Hopper (compute capability 9.0): wgmma fed by the tensor copy engine.
//
// A block owns 128 query rows of one head: two warpgroups of 64, Q in registers. K and V pass through a ring
// of stages, one barrier "full" and one "empty" each; thread 0 issues the copies two blocks behind the stage
// it refills, so that it never waits for a block in flight. There is no warp of its own for this: it would
// take a third of a warp slot's registers, and with 256 threads two blocks share a multiprocessor (D ≤ 64),
// whose four warps a scheduler overlap softmax and products without handing a baton around.
//
// Per block of kKeys keys and warpgroup (FlashAttention-3, arXiv 2407.08608, §3.2): issue S = QKᵀ of block n,
// issue O += P V of block n − 1, wait for S, softmax of S while O is still running, wait for O, round S to P.
// The reference of a row rises only when its maximum passes it by 8 in base 2, so that O is seldom rescaled;
// the rule looks at one row alone, so bits stay those of the row. V rows beyond the sequence are zeroed in
// shared memory. Bounds: per score one exp2 (16 a cycle and multiprocessor) and 4·D flops (4096): equal at D
// = 64. Oracle: tests/attention/cuda/kernels.cu, f64. Measured: attention/cuda/README.md.
// Longer than a header: the kernel and its pieces read as one, and the kernel is one function because wgmma
// allows no calls between its parts.
#pragma once

#include <cuda.h>

#include "attention/cuda/launch.h"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {

struct HopperMaps {
  CUtensorMap q, k, v;
};

template <int kDim>
struct HopperShape {
  static constexpr int kRows = 128, kThreads = 256, kKeys = 128, kStages = 3;
  static constexpr bool kOverlap = kDim > 64;         // P·V of a block runs during the next softmax
  static constexpr bool kQueriesShared = kDim == 64;  // Q stays in shared memory
  static constexpr int kBlocksPerProcessor = kDim > 64 ? 1 : 2;
  static constexpr int kHalves = kDim > 64 ? kDim / 64 : 1;
  static constexpr int kColumns = kDim / kHalves, kRowBytes = kColumns * 2;
  static constexpr int kQBytes = kRows * kDim * 2, kKeyBytes = kKeys * kDim * 2;
  static constexpr int kBytes = kQBytes + 2 * kStages * kKeyBytes + (1 + 2 * kStages) * 8;
};

/// The ring of key blocks: what thread 0 fills and every warp empties. Blocks count from the tile's first.
template <int kDim>
struct KeyRing {
  using Shape = HopperShape<kDim>;
  unsigned char *k, *v;
  std::uint64_t *full, *empty;
  int blocks = 0, produced = 0, first_row = 0, head = 0;

  __device__ unsigned char* k_tile(int n) const { return k + n % Shape::kStages * Shape::kKeyBytes; }
  __device__ unsigned char* v_tile(int n) const { return v + n % Shape::kStages * Shape::kKeyBytes; }

  /// Thread 0: issues the copies of all blocks before `end`.
  __device__ void produce(const HopperMaps& maps, int end) {
#pragma unroll 1
    for (; produced < min(end, blocks); ++produced) {
      const int stage = produced % Shape::kStages, row = first_row + produced * Shape::kKeys;
      if (produced >= Shape::kStages) barrier_wait(empty + stage, produced / Shape::kStages + 1 & 1);
      barrier_expect(full + stage, 2 * Shape::kKeyBytes);
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        const int at = half * Shape::kKeys * Shape::kRowBytes;
        copy_box(k_tile(produced) + at, &maps.k, full + stage, half * 64, head, row);
        copy_box(v_tile(produced) + at, &maps.v, full + stage, half * 64, head, row);
      }
    }
  }
  __device__ void wait(int n) const {
    barrier_wait(full + n % Shape::kStages, n / Shape::kStages & 1);
  }
  __device__ void release(int n) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty + n % Shape::kStages);
  }
};

/// Q of a warpgroup's 64 rows as left operands, by ldmatrix from the swizzled tile.
template <int kDim>
__device__ inline void load_queries(std::uint32_t (&q)[kDim / 16][4], const unsigned char* tile) {
  using Shape = HopperShape<kDim>;
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * 16 + lane % 16;
  const int turn = Shape::kRowBytes == 128 ? row % 8 : row / 2 % 4;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int half = i * 16 / Shape::kColumns, piece = i * 2 % (Shape::kColumns / 8) + lane / 16;
    ldmatrix_x4(q[i], shared_address(tile + half * Shape::kRows * Shape::kRowBytes + row * Shape::kRowBytes +
                                     (piece ^ turn) * 16));
  }
}

/// Issues S = Q Kᵀ.
template <class T, int kDim>
__device__ inline void issue_scores(float (&s)[HopperShape<kDim>::kKeys / 2],
                                    const std::uint32_t (&q)[kDim / 16][4], const unsigned char* q_tile,
                                    const unsigned char* k_tile) {
  using Shape = HopperShape<kDim>;
  const std::uint32_t k = matrix_low(k_tile, 16);
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int half = i * 16 / Shape::kColumns;
    const int at = half * Shape::kKeys * Shape::kRowBytes + i * 32 % Shape::kRowBytes;
    if constexpr (Shape::kQueriesShared) {
      wgmma<T, Shape::kRowBytes, 0>(s, matrix_low(q_tile, 16) + i * 32 / 16, k + at / 16, i != 0);
    } else {
      wgmma<T, Shape::kRowBytes, 0>(s, q[i], k + at / 16, i != 0);
    }
  }
  wgmma_commit();
}

/// Issues O += P V.
template <class T, int kDim>
__device__ inline void issue_values(float (&o)[kDim / 2],
                                    const std::uint32_t (&p)[HopperShape<kDim>::kKeys / 16][4],
                                    const unsigned char* v_tile) {
  using Shape = HopperShape<kDim>;
  const std::uint32_t v = matrix_low(v_tile, Shape::kKeys * Shape::kRowBytes);
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 16; ++i) {
    wgmma<T, Shape::kRowBytes, 1>(o, p[i], v + i * 16 * Shape::kRowBytes / 16, 1);
  }
  wgmma_commit();
}

/// The running state of a lane's rows g and g + 8. Raw scores: `scale` turns them into base 2.
struct HopperRows {
  float reference[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
};

/// Scores to weights. Returns whether some row of the warp moved its reference; then rescale tells by how
/// much.
template <int kCount>
__device__ inline bool soften(float (&s)[kCount], HopperRows& rows, float scale, float margin,
                              float (&rescale)[2]) {
  bool rose = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float tops[2] = {fmaxf(s[2 * r], s[2 * r + 1]), fmaxf(s[4 + 2 * r], s[5 + 2 * r])};
#pragma unroll
    for (int i = 8; i < kCount; i += 8) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        tops[j] = fmaxf(tops[j], fmaxf(s[i + 4 * j + 2 * r], s[i + 4 * j + 2 * r + 1]));
      }
    }
    float top = fmaxf(tops[0], tops[1]);
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const bool rises = top > rows.reference[r] + margin;
    rescale[r] = rises ? exp2_approx((rows.reference[r] - top) * scale) : 1.0f;
    rows.reference[r] = rises ? top : rows.reference[r];
    rose |= rises;
    const float shift = rows.reference[r] == -INFINITY ? 0.0f : rows.reference[r] * scale;
    float sums[2] = {rows.sum[r] * rescale[r], 0.0f};
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = s[i + 2 * r + e];
        x = exp2_approx(fmaf(x, scale, -shift));
        sums[e] += x;
      }
    }
    rows.sum[r] = sums[0] + sums[1];
  }
  return __any_sync(0xffffffffu, rose);
}

/// Hides what the window does. kFrom: its beginning, too, may lie in the block.
template <bool kFrom, int kCount>
__device__ inline void hide(float (&s)[kCount], const KeyWindow& window, int query, int key, int keys) {
  const int column = key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int low = query + 8 * r + window.from - column,
              high = min(query + 8 * r + window.until, keys) - column;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int at = i * 2 + e;
        s[i + 2 * r + e] = (!kFrom || at >= low) && at < high ? s[i + 2 * r + e] : -INFINITY;
      }
    }
  }
}

/// Rounds weights to left operands of the next product, without those that dropout takes.
template <class T, Drawing kDrawing, int kCount>
__device__ inline void round_weights(std::uint32_t (&p)[kCount / 8][4], const float (&s)[kCount],
                                     const DeviceDropout& rule, const DrawnRows<kCount / 4>& drawn,
                                     std::uint32_t stream, int query, int key) {
#pragma unroll
  for (int part = 0; part < kCount / 32; ++part) {
    float kept_s[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) kept_s[i] = s[part * 32 + i];
    if constexpr (kDrawing == Drawing::here) {
      const KeptByQuery<8> kept(rule, stream, query, key + part * 64);
#pragma unroll
      for (int i = 0; i < 32; ++i) kept_s[i] = kept(i / 4, i % 4) ? kept_s[i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      std::uint32_t& pair = p[part * 4 + i / 4][i % 4];
      pair = pack2<T>(kept_s[2 * i], kept_s[2 * i + 1]);
      if constexpr (kDrawing == Drawing::before) pair &= drawn.pair(part * 8 + i / 2, i % 2);
    }
  }
}

/// Zeroes rows [from, kKeys) of a V tile: what follows a sequence may be anything, and 0 · NaN is NaN. Both
/// warpgroups write the same zeros.
template <int kDim>
__device__ inline void zero_tail(unsigned char* v_tile, int from, int group) {
  using Shape = HopperShape<kDim>;
  constexpr int kPieces = Shape::kRowBytes / 16;
#pragma unroll
  for (int half = 0; half < Shape::kHalves; ++half) {
    uint4* rows = reinterpret_cast<uint4*>(v_tile + half * Shape::kKeys * Shape::kRowBytes);
    for (int i = from * kPieces + threadIdx.x % 128; i < Shape::kKeys * kPieces; i += 128)
      rows[i] = {0, 0, 0, 0};
  }
  fence_async();
  group_sync(group);
}

/// Writes a warpgroup's rows of out: through shared memory in 16-byte pieces when `wide`, else pair by pair.
template <class T, int kDim>
__device__ inline void store_out(const ForwardArgs& a, const float (&o)[kDim / 2], const float (&factor)[2],
                                 unsigned char* staging, int q_begin, int first, int queries, int head,
                                 bool wide) {
  using Shape = HopperShape<kDim>;
  const int thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = thread % kWarp;
  const int row = thread / kWarp * 16 + lane / 4;  // of the warpgroup's 64
  if (wide) {
    constexpr int kPieces = kDim / 8;
    unsigned char* mine = staging + group * 64 * kDim * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int n = 0; n < kPieces; ++n) {
        const int piece = n ^ ((row + 8 * r) % (kPieces < 8 ? kPieces : 8));
        *reinterpret_cast<std::uint32_t*>(mine + (row + 8 * r) * kDim * 2 + piece * 16 + lane % 4 * 4) =
            pack2<T>(o[4 * n + 2 * r] * factor[r], o[4 * n + 2 * r + 1] * factor[r]);
      }
    }
    group_sync(group);
#pragma unroll 4
    for (int i = thread; i < 64 * kPieces; i += 128) {
      const int at = i / kPieces, n = i % kPieces, query = first + group * 64 + at;
      const int piece = n ^ (at % (kPieces < 8 ? kPieces : 8));
      if (query < queries && n * 8 < a.dim) {
        *reinterpret_cast<uint4*>(row_address(a.out, q_begin + query, head, 2) + n * 16) =
            *reinterpret_cast<const uint4*>(mine + at * kDim * 2 + piece * 16);
      }
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = first + group * 64 + row + 8 * r;
    if (query >= queries) continue;
    const bool as_f32 = a.out_dtype == DType::f32;
    char* to = row_address(a.out, q_begin + query, head, as_f32 ? 4 : 2);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      store_pair<T>(to, as_f32, n * 8 + lane % 4 * 2, a.dim, false, o[4 * n + 2 * r] * factor[r],
                    o[4 * n + 2 * r + 1] * factor[r]);
    }
  }
}

template <class T, int kDim, Drawing kDrawing>
__global__ void __launch_bounds__(256, HopperShape<kDim>::kBlocksPerProcessor)
    forward_hopper_kernel(const __grid_constant__ ForwardArgs a, const __grid_constant__ HopperMaps maps,
                          bool wide_out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = HopperShape<kDim>;
  constexpr int kKeys = Shape::kKeys;
  extern __shared__ __align__(1024) unsigned char memory[];
  start_next();
  wait_for_inputs();
  KeyRing<kDim> ring;
  ring.k = memory + Shape::kQBytes;
  ring.v = ring.k + Shape::kStages * Shape::kKeyBytes;
  std::uint64_t* q_full = reinterpret_cast<std::uint64_t*>(ring.v + Shape::kStages * Shape::kKeyBytes);
  ring.full = q_full + 1;
  ring.empty = ring.full + Shape::kStages;
  const AttentionTile tile = a.tiles[blockIdx.x];
  const int b = tile.sequence, head = tile.head, q_begin = a.cu_q[b], k_begin = a.cu_k[b];
  const int queries = a.cu_q[b + 1] - q_begin, keys = a.cu_k[b + 1] - k_begin;
  const int first = tile.block * Shape::kRows,
            group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // uniform
  const KeyWindow window = key_window(a.mask.kind, a.mask.left, a.mask.right, queries, keys);
  const RowSpan span = keys_of_queries(window, first, min(first + Shape::kRows, queries), keys);
  const int block_begin = span.begin / kKeys;
  ring.blocks = span.count() == 0 ? 0 : (span.end + kKeys - 1) / kKeys - block_begin;
  ring.first_row = k_begin + block_begin * kKeys;
  ring.head = head / (a.heads / a.kv_heads);
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, Shape::kThreads / kWarp);
    }
    barrier_init_fence();
    fence_async();
    barrier_expect(q_full, Shape::kQBytes);
    for (int half = 0; half < Shape::kHalves; ++half) {
      copy_box(memory + half * Shape::kRows * Shape::kRowBytes, &maps.q, q_full, half * 64, head,
               q_begin + first);
    }
    ring.produce(maps, Shape::kStages);
  }
  __syncthreads();

  // This warpgroup's rows and the blocks (of the tile's) that they meet.
  const int my_first = first + group * 64, my_last = min(my_first + 64, queries);
  const RowSpan mine = my_first < my_last ? keys_of_queries(window, my_first, my_last, keys) : RowSpan{};
  const int begin = mine.count() == 0 ? ring.blocks : mine.begin / kKeys - block_begin;
  const int end = mine.count() == 0 ? ring.blocks : (mine.end + kKeys - 1) / kKeys - block_begin;
  // Those in which each of the rows sees every key.
  const int clear_begin = max(0, my_last - 1 + window.from + kKeys - 1) / kKeys - block_begin;
  const int clear_end = max(0, min(my_first + window.until, keys)) / kKeys - block_begin;
  const int lane = threadIdx.x % kWarp, query = my_first + threadIdx.x % 128 / kWarp * 16 + lane / 4;
  const float scale = a.scale * kLog2E, margin = 8.0f / scale;
  const std::uint32_t stream = b * a.heads + head;
  const auto produce_behind = [&](int n) {
    if (threadIdx.x == 0) ring.produce(maps, n + Shape::kStages - 1);
  };
  const auto pass = [&](int n) {  // a block that only the other warpgroup meets
    produce_behind(n);
    ring.wait(n);
    ring.release(n);
  };

  std::uint32_t q[kDim / 16][4], p[kKeys / 16][4];
  float s[kKeys / 2] = {}, o[kDim / 2], rescale[2];
  HopperRows rows;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0.0f;
  barrier_wait(q_full, 0);
  if constexpr (!Shape::kQueriesShared) load_queries<kDim>(q, memory);

  DrawnBits bits;
  DrawnRows<kKeys / 8> drawn;
  if constexpr (kDrawing == Drawing::before) bits = {a.dropout, false, b, head, queries, keys};
  const auto fetch_drawn = [&](int n) {
    if constexpr (kDrawing == Drawing::before) drawn.read(bits, query, (block_begin + n) * kKeys);
  };
  const auto weigh = [&](int n) {  // s: scores to weights
    const int key = (block_begin + n) * kKeys;
    if (n < clear_begin || n >= clear_end) {
      if (window.from == -kFar) {
        hide<false>(s, window, query, key, keys);
      } else {
        hide<true>(s, window, query, key, keys);
      }
    }
    return soften(s, rows, scale, margin, rescale);
  };
  const auto await = [&](int n) {
    ring.wait(n);
    const int key = (block_begin + n) * kKeys;
    if (key + kKeys > keys) zero_tail<kDim>(ring.v_tile(n), keys - key, group);
  };
  const auto rescale_values = [&] {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] *= rescale[i / 2 % 2];
  };
  const unsigned char* q_tile = memory + group * 64 * Shape::kRowBytes;
#pragma unroll 1
  for (int n = 0; n < begin; ++n) pass(n);
  if constexpr (!Shape::kOverlap) {
#pragma unroll 1
    for (int n = begin; n < end; ++n) {
      await(n);
      hold(s);
      wgmma_fence();
      issue_scores<T, kDim>(s, q, q_tile, ring.k_tile(n));
      produce_behind(n);  // while the products run
      fetch_drawn(n);
      wgmma_wait<0>();
      hold(s);
      if (weigh(n)) rescale_values();
      round_weights<T, kDrawing>(p, s, a.dropout, drawn, stream, query, (block_begin + n) * kKeys);
      hold(o);
      wgmma_fence();
      issue_values<T, kDim>(o, p, ring.v_tile(n));
      wgmma_wait<0>();
      hold(o);
      ring.release(n);
    }
  } else if (begin < end) {
    await(begin);
    wgmma_fence();
    issue_scores<T, kDim>(s, q, q_tile, ring.k_tile(begin));
    produce_behind(begin);
    fetch_drawn(begin);
    wgmma_wait<0>();
    hold(s);
    weigh(begin);  // o is zero: nothing to rescale
    round_weights<T, kDrawing>(p, s, a.dropout, drawn, stream, query, (block_begin + begin) * kKeys);
#pragma unroll 1
    for (int n = begin + 1; n < end; ++n) {
      await(n);
      hold(s);
      hold(o);
      wgmma_fence();
      issue_scores<T, kDim>(s, q, q_tile, ring.k_tile(n));
      issue_values<T, kDim>(o, p, ring.v_tile(n - 1));
      produce_behind(n);  // while the products run
      fetch_drawn(n);
      wgmma_wait<1>();
      hold(s);
      const bool rose = weigh(n);
      hold(s);  // or the compiler waits for O before the exponentials
      wgmma_wait<0>();
      hold(o);
      ring.release(n - 1);
      if (rose) rescale_values();
      round_weights<T, kDrawing>(p, s, a.dropout, drawn, stream, query, (block_begin + n) * kKeys);
    }
    hold(o);
    wgmma_fence();
    issue_values<T, kDim>(o, p, ring.v_tile(end - 1));
    wgmma_wait<0>();
    hold(o);
    ring.release(end - 1);
  }
#pragma unroll 1
  for (int n = end; n < ring.blocks; ++n) pass(n);

  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    factor[r] = sum == 0.0f ? 0.0f : __fdividef(a.dropout.scale, sum);
    const int row = query + 8 * r;
    if (a.lse != nullptr && lane % 4 == 0 && row < queries) {
      a.lse[head * a.lse_head + (q_begin + row) * a.lse_row] =
          sum == 0.0f ? -INFINITY : (rows.reference[r] * scale + __log2f(sum)) * kLn2;
    }
  }
  // Every warp has read the Q whose place its warpgroup's output takes.
  if constexpr (Shape::kHalves == 1) {
    group_sync(group);
  } else {
    __syncthreads();
  }
  store_out<T, kDim>(a, o, factor, memory, q_begin, first, queries, head, wide_out);
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

}  // namespace inkling::cuda
