// The warpgroups of backward_hopper.cuh that make the gradients of keys and values, and dS for those of
// queries.
#pragma once

#include "attention/cuda/backward_shape.cuh"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"

namespace inkling::cuda {

/// Issues c = own · passᵀ: 64 keys × kQueries.
template <class T, int kDim>
__device__ inline void issue_scores(float (&c)[BackwardHopperShape<kDim>::kQueries / 2],
                                    const unsigned char* own, const unsigned char* pass) {
  using Shape = BackwardHopperShape<kDim>;
#pragma unroll
  for (int half = 0; half < Shape::kHalves; ++half) {
    const std::uint32_t a = matrix_low(own + half * Shape::kOwnHalf, 16);
    const std::uint32_t b = matrix_low(pass + half * Shape::kPassHalf, 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) wgmma<T, 128, 0>(c, a + i * 2, b + i * 2, half + i != 0);
  }
  wgmma_commit();
}

/// Issues c += weights · pass: 64 keys × kDim.
template <class T, int kDim>
__device__ inline void issue_weights(
    float (&c)[kDim / 2], const std::uint32_t (&weights)[BackwardHopperShape<kDim>::kQueries / 16][4],
    const unsigned char* pass) {
  using Shape = BackwardHopperShape<kDim>;
  const std::uint32_t b = matrix_low(pass, Shape::kPassHalf);
#pragma unroll
  for (int i = 0; i < Shape::kQueries / 16; ++i) wgmma<T, 128, 1>(c, weights[i], b + i * 16 * 128 / 16, 1);
}

template <class T, int kCount>
__device__ inline void round_pairs(std::uint32_t (&to)[kCount / 8][4], const float (&from)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) to[i / 4][i % 4] = pack2<T>(from[2 * i], from[2 * i + 1]);
}

/// A warp's 16 rows to a tile of rows of 128 swizzled bytes, from one of their 64-byte halves on.
template <int kCount>
__device__ inline void store_operands(unsigned char* tile, const std::uint32_t (&from)[kCount][4]) {
  const int lane = threadIdx.x % kWarp, row = lane % 16;
  const std::uint32_t to = shared_address(tile) + row * 128, start = to & ~127u, first = to % 128 / 16;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const std::uint32_t at = start + ((first + i * 2 + lane / 16) ^ row % 8) * 16;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                 "r"(from[i][0]), "r"(from[i][1]), "r"(from[i][2]), "r"(from[i][3])
                 : "memory");
  }
}

/// Stores 64 rows of a warpgroup, of which `rows` (from its first) exist.
template <class T, int kDim>
__device__ inline void store_sums(const HeadRows& to, bool as_f32, const float (&c)[kDim / 2], float factor,
                                  std::int64_t first_row, int rows, int head, int dim) {
  const int lane = threadIdx.x % kWarp, row = threadIdx.x % 128 / kWarp * 16 + lane / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (row + 8 * r >= rows) continue;
    char* at = row_address(to, first_row + row + 8 * r, head, as_f32 ? 4 : 2);
    const bool paired = reinterpret_cast<std::uintptr_t>(at) % 4 == 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      store_pair<T>(at, as_f32, n * 8 + lane % 4 * 2, dim, paired, c[4 * n + 2 * r] * factor,
                    c[4 * n + 2 * r + 1] * factor);
    }
  }
}

/// The same for 16-bit rows that start at multiples of 16 bytes, by way of 64 rows of shared memory.
template <class T, int kDim>
__device__ inline void store_rows(const HeadRows& to, unsigned char* tile, const float (&c)[kDim / 2],
                                  float factor, std::int64_t first_row, int rows, int head, int dim,
                                  int group) {
  using Shape = BackwardHopperShape<kDim>;
  const int thread = threadIdx.x % 128;
#pragma unroll
  for (int half = 0; half < Shape::kHalves; ++half) {
    float scaled[32];
    std::uint32_t pairs[4][4];
#pragma unroll
    for (int i = 0; i < 32; ++i) scaled[i] = c[half * 32 + i] * factor;
    round_pairs<T>(pairs, scaled);
    group_sync(group);  // what was there before has been read
    store_operands(tile + thread / kWarp * 16 * Shape::kRowBytes, pairs);
    group_sync(group);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = i * 16 + thread / 8, piece = thread % 8;
      if (row >= rows || half * 64 + piece * 8 >= dim) continue;
      const uint4 x = *reinterpret_cast<const uint4*>(tile + row * Shape::kRowBytes + (piece ^ row % 8) * 16);
      *reinterpret_cast<uint4*>(row_address(to, first_row + row, head, 2) + half * 128 + piece * 16) = x;
    }
  }
}

/// Zeroes rows [from, rows) of a tile, by a warpgroup: what follows a sequence may be NaN.
__device__ inline void zero_rows(unsigned char* tile, int from, int rows, int halves, int half_bytes) {
#pragma unroll 1
  for (int half = 0; half < halves; ++half, tile += half_bytes) {
#pragma unroll 1
    for (int i = from * 8 + static_cast<int>(threadIdx.x % 128); i < rows * 8; i += 128) {
      reinterpret_cast<uint4*>(tile)[i] = {0, 0, 0, 0};
    }
  }
}

/// A warpgroup of 64 keys.
template <class T, int kDim, Drawing kDrawing>
__device__ inline void add_keys(const BackwardArgs& a, const BackwardShared<kDim>& shared, int group,
                                bool wide_grads) {
  using Shape = BackwardHopperShape<kDim>;
  constexpr int kQueries = Shape::kQueries, kHalves = Shape::kHalves, kTiles = kQueries / 8;
  const ForwardArgs& f = a.forward;
  const int lane = threadIdx.x % kWarp, warp_row = threadIdx.x % 128 / kWarp * 16;
  const float scale = f.scale * kLog2E;
  const bool as_f32 = a.grad_dtype == DType::f32;
  float s[kQueries / 2] = {}, dp[kQueries / 2] = {};
  std::uint32_t values[kQueries / 16][4], weights[kQueries / 16][4];
  unsigned n = 0;  // blocks of queries, of all tiles
  for (unsigned t = 0;; ++t) {
    shared.tiles.wait_full(t);
    const BackwardJob& job =
        shared.jobs[t % 2];  // registers are short: most of it is read where it is wanted
    const int steps = job.steps;
    if (steps < 0) return;
    const int my_first = job.first + group * 64, row = my_first + warp_row + lane / 4;
    unsigned char* const own_k = shared.k(t) + group * 64 * Shape::kRowBytes;
    unsigned char* const own_v = shared.v(t) + group * 64 * Shape::kRowBytes;
    if (my_first + 64 > job.keys) {
      zero_rows(own_k, max(job.keys - my_first, 0), 64, kHalves, Shape::kOwnHalf);
      zero_rows(own_v, max(job.keys - my_first, 0), 64, kHalves, Shape::kOwnHalf);
      fence_async();
      group_sync(group);
    }
    // Of the blocks that begin at queries [whole_begin, whole_end] all 64 keys see all.
    int whole_begin = 0, whole_end = -1;
    if (my_first + 64 <= job.keys) {
      const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, job.queries, job.keys);
      whole_begin = my_first + 64 - window.until;
      whole_end = min(my_first - window.from + 1, job.queries) - kQueries;
    }
    BackwardWalk walk(job);
    DrawnBits bits;
    DrawnRows<8> drawn;
    std::int64_t next_head = 0;
    if constexpr (kDrawing == Drawing::before) {
      bits = {f.dropout, true, job.sequence, walk.head, job.queries, job.keys};
      next_head = drawn_words(job.queries, job.keys);
    }
    float sum_p[kDim / 2] = {}, sum_ds[kDim / 2] = {};

    // Waits for block m; what lies in it beyond the sequence becomes zero.
    const auto await = [&](unsigned m, int block) {
      const int rows = job.queries - block * kQueries;
      shared.blocks.wait_full(m);
      if (rows < kQueries) {
        zero_rows(shared.q(m), rows, kQueries, kHalves, Shape::kPassHalf);
        zero_rows(shared.dout(m), rows, kQueries, kHalves, Shape::kPassHalf);
        fence_async();
        group_sync(group);
      }
    };
    const auto issue_both = [&](unsigned m) {
      issue_scores<T, kDim>(s, own_k, shared.q(m));
      issue_scores<T, kDim>(dp, own_v, shared.dout(m));
    };
    const auto issue_sums = [&](unsigned m) {
      issue_weights<T, kDim>(sum_p, values, shared.dout(m));
      issue_weights<T, kDim>(sum_ds, weights, shared.q(m));
      wgmma_commit();
    };
    // Sᵀ of block n to P.
    const auto soften = [&] {
      const float* const stat = shared.stat(n);
      const int other = walk.block * kQueries;
      if (other < whole_begin ||
          other > whole_end) {  // visible columns of rows r: [low, high), from the lane's
        const KeyWindow window = key_window(f.mask.kind, f.mask.left, f.mask.right, job.queries, job.keys);
        const int column = other + lane % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int at = row + 8 * r, low = at - window.until + 1 - column;
          const int high = at < job.keys ? min(at - window.from + 1, job.queries) - column : low;
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              float& x = s[4 * j + 2 * r + e];
              x = j * 8 + e >= low && j * 8 + e < high ? x : -INFINITY;
            }
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const float2 lse = *reinterpret_cast<const float2*>(stat + j * 8 + lane % 4 * 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[4 * j + e] = exp2_approx(fmaf(s[4 * j + e], scale, -(e % 2 == 0 ? lse.x : lse.y)));
        }
      }
    };
    // P and dPᵀ of block n to operands, and dSᵀ to shared memory.
    const auto differentiate = [&] {
      const float* const stat = shared.stat(n) + kQueries;
      const auto each = [&](const auto& keep) {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          const float2 delta = *reinterpret_cast<const float2*>(stat + j * 8 + lane % 4 * 2);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float &p = s[4 * j + e], &x = dp[4 * j + e];
            const float minus = e % 2 == 0 ? delta.x : delta.y;
            if constexpr (kDrawing == Drawing::none) {
              x = p * (x - minus);
            } else {
              const float factor = keep(j, e);
              x = p * (x * factor - minus);
              p *= factor;
            }
          }
        }
      };
      if constexpr (kDrawing == Drawing::before) {
        each([&](int j, int e) {
          return __uint_as_float(drawn.element(j, e) & __float_as_uint(f.dropout.scale));
        });
      } else if constexpr (kDrawing == Drawing::here) {
        const KeptByKey<kTiles> kept(f.dropout, job.sequence * f.heads + walk.head, row,
                                     walk.block * kQueries);
        each([&](int j, int e) { return kept(j, e) ? f.dropout.scale : 0.0f; });
      } else {
        each(0);
      }
      round_pairs<T>(values, s);
      round_pairs<T>(weights, dp);
      shared.weights.wait_empty(n);
      store_operands(shared.ds(n) + (group * 64 + warp_row) * Shape::kRowBytes, weights);
    };
    // Once the products that need no dS have been issued: its way to shared memory takes time.
    const auto publish = [&](unsigned m) {
      fence_async();
      shared.weights.arrive(shared.weights.full, m);
    };
    if (steps > 0) {
      await(n, walk.block);
      wgmma_fence();
      issue_both(n);
      if constexpr (kDrawing == Drawing::before) drawn.read(bits, row, walk.block * kQueries);
      wgmma_wait<1>();
      hold(s);
      soften();
      hold(s);
      wgmma_wait<0>();
      hold(dp);
      differentiate();
#pragma unroll 1
      for (int i = 1; i < steps; ++i) {
        const int head = walk.head;
        walk.next(job);
        if constexpr (kDrawing == Drawing::before) {
          if (walk.head != head) bits.bits += next_head;
          drawn.read(bits, row, walk.block * kQueries);
        }
        await(n + 1, walk.block);
        hold(s);
        hold(dp);
        hold(sum_p);
        hold(sum_ds);
        wgmma_fence();
        issue_both(n + 1);
        issue_sums(n);
        publish(n);
        ++n;
        wgmma_wait<2>();
        hold(s);
        soften();
        hold(s);
        wgmma_wait<0>();
        hold(dp);
        hold(sum_p);
        hold(sum_ds);
        shared.blocks.arrive(shared.blocks.empty, n - 1);
        differentiate();
      }
      hold(sum_p);
      hold(sum_ds);
      wgmma_fence();
      issue_sums(n);
      publish(n);
      wgmma_wait<0>();
      hold(sum_p);
      hold(sum_ds);
      shared.blocks.arrive(shared.blocks.empty, n);
      ++n;
    }
    const std::int64_t out_row = job.k_begin + my_first;
    const int rows = job.keys - my_first,
              head = job.head;  // the job's memory is the next one's once all are done
    if (wide_grads) {           // by way of this warpgroup's rows of V, which no one needs any more
      store_rows<T, kDim>(a.dv, own_v, sum_p, 1.0f, out_row, rows, head, f.dim, group);
      store_rows<T, kDim>(a.dk, own_v, sum_ds, f.scale, out_row, rows, head, f.dim, group);
      fence_async();  // before the copy engine writes there
      shared.tiles.arrive(shared.tiles.empty, t);
    } else {
      shared.tiles.arrive(shared.tiles.empty, t);
      store_sums<T, kDim>(a.dv, as_f32, sum_p, 1.0f, out_row, rows, head, f.dim);
      store_sums<T, kDim>(a.dk, as_f32, sum_ds, f.scale, out_row, rows, head, f.dim);
    }
  }
}

}  // namespace inkling::cuda
