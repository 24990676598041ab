// The gradient of a norm, and sums over rows. Both are bound by memory.
//
// With y = (x − mean)/σ and g = dout · weight:
//   dx += (g − mean(g) − y · mean(g · y)) / σ,  dweight += Σ dout · y,  dbias += Σ dout.
// A warp has a row in its registers, where it fits, and keeps the sums of its columns there from row to row:
// x, dout and dx are read once. Sums over rows go by blocks of rows to a workspace and are added in one
// order. The gradient of the branch before, dropout of the new dx, is written from the same registers. A norm
// of 16384 × 768 with dout in bf16 moves 176 MB, 41 µs at 4.3 TB/s, with a branch 201. Oracle: engine/cpu, by
// tests/engine/cuda_training.cpp.
#include <cmath>

#include "engine/cuda/chain.cuh"
#include "engine/cuda/dropout.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/norm.cuh"
#include "engine/cuda/rows.cuh"
#include "engine/cuda/training_kernels.h"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / kWarp;
constexpr int kTile = 4 * kWarp;  // columns that a warp meets at once
constexpr int kSumRows = 128;     // of a block of column sums
// The norm's blocks: few warps with many registers. 16384 rows are 373 blocks, three a processor of 132.
constexpr int kNormWarps = 4, kNormBlock = kNormWarps * kWarp, kNormRows = 44;

/// Adds the sums that every warp has of the kTile columns from `first` on, in order: sum s of column c to
/// partial[s][c].
template <int kBy, int kSums>
__device__ inline void add_warps(const float (&sums)[kSums][4], float* partial, std::int64_t first,
                                 std::int64_t n) {
  __shared__ float shared[kBy][kSums][kTile];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  __syncthreads();  // of the columns before
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int e = 0; e < 4; ++e) shared[warp][s][lane * 4 + e] = sums[s][e];
  }
  __syncthreads();
  for (int at = threadIdx.x; at < kSums * kTile; at += kBy * kWarp) {
    const int s = at / kTile, column = at % kTile;
    if (first + column >= n) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kBy; ++w) sum += shared[w][s][column];
    partial[s * n + first + column] = sum;
  }
}

/// Whether a lane has registers for a row of kHeld fours, its dout in T and the sums of its columns.
template <class T, int kHeld>
constexpr bool kFits = kHeld != 0 && (kHeld <= 6 || sizeof(T) == 2);

/// Whether the branch's gradient is written in the same pass: the widest rows leave no registers for it.
template <int kHeld>
constexpr bool kBranches = kHeld <= 6;

/// A warp per row, rows of up to kHeld fours a lane. To partial[block][0: Σ dout, 1: Σ dout · y][column],
/// unless it is null.
template <class T, int kHeld>
__global__ void __launch_bounds__(kNormBlock, kHeld * sizeof(T) <= 16 ? 3 : 2)
    norm_backward_kernel(const __grid_constant__ NormBackward a, float* partial) {
  start_next();
  wait_for_inputs();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, n = static_cast<int>(a.x.columns);
  const std::int64_t begin = std::int64_t{blockIdx.x} * kNormRows, end = min(begin + kNormRows, a.x.rows);
  const auto count = static_cast<float>(n);
  // A load beyond the row meets its last four again (norm.cuh), and counts as zeros.
  const auto column = [&](int i) { return lane * 4 + i * kTile; };
  const auto inside = [&](int i) { return min(column(i), n - 4); };
  float sums[kHeld][2][4] = {};
  for (std::int64_t row = begin + warp; row < end; row += kNormWarps) {
    const float* const x = row_of<float>(a.x, row);
    const T* const dout = row_of<T>(a.dout, row);
    float* const dx = mutable_row<float>(a.dx, row);
    float v[kHeld][4];
    Four<T> d_raw[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) widen<float>(four_at(x + inside(i)), v[i]);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) d_raw[i] = four_at(dout + inside(i));
#pragma unroll  // dx is wanted after the sums, and a wide row leaves no registers for it: to L2 by then
    for (int i = 0; i < kHeld; ++i) asm volatile("prefetch.global.L2 [%0];" ::"l"(dx + inside(i)));

    float sum = 0.0f, g_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (column(i) >= n) d_raw[i] = {};
      float d[4], w[4];
      widen<T>(d_raw[i], d), widen<float>(four_at(a.norm.weight + inside(i)), w);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum += column(i) < n ? v[i][e] : 0.0f, g_sum += d[e] * w[e];
    }
    const float mean = warp_sum(sum) / count, g_mean = warp_sum(g_sum) / count;

    float squares = 0.0f, gd_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      float d[4], w[4];
      widen<T>(d_raw[i], d), widen<float>(four_at(a.norm.weight + inside(i)), w);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        v[i][e] = column(i) < n ? v[i][e] - mean : 0.0f;
        squares += v[i][e] * v[i][e], gd_sum += d[e] * w[e] * v[i][e];
      }
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / count + a.norm.epsilon);
    const float gy_mean = warp_sum(gd_sum) * inverse / count;

    const bool branches = kBranches<kHeld> && a.branch.x.data != nullptr;
    T* const branch = branches ? mutable_row<T>(a.branch.x, row) : nullptr;
    const RowDropout drop(a.branch, row, kBranches<kHeld>);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      float d[4], w[4], to[4];
      widen<T>(d_raw[i], d), widen<float>(four_at(a.norm.weight + inside(i)), w);
      widen<float>(four_at(dx + inside(i)), to);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float y = v[i][e] * inverse;
        to[e] += (d[e] * w[e] - g_mean - y * gy_mean) * inverse;
        sums[i][0][e] += d[e], sums[i][1][e] += d[e] * y;
      }
      if (column(i) >= n) continue;
      store4(dx + column(i), to, 4, true);
      if (!branches) continue;
      drop(column(i), to);
      store4(branch + column(i), to, 4, true);
    }
  }
  if (partial == nullptr) return;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    add_warps<kNormWarps>(sums[i], partial + std::int64_t{blockIdx.x} * 2 * n, i * kTile, n);
}

/// Calls body(c) for a warp's share of the columns, in fours.
template <class Body>
__device__ inline void each_four(std::int64_t columns, const Body& body) {
  for (std::int64_t c = 4 * (threadIdx.x % kWarp); c < columns; c += 4 * kWarp) body(c);
}

/// dx alone, of rows of any width, read three times. A warp per row; leaves (mean, 1/σ) for the sums over
/// rows.
template <class T>
__global__ void __launch_bounds__(kBlock)
    long_norm_backward_kernel(const NormBackward a, float2* moments, bool fours) {
  start_next();
  wait_for_inputs();
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, n = a.x.columns;
  if (row >= a.x.rows) return;
  const float* const x = row_of<float>(a.x, row);
  const T* const dout = row_of<T>(a.dout, row);
  float* const dx = mutable_row<float>(a.dx, row);
  const auto count = static_cast<float>(n);
  float sum = 0.0f, g_sum = 0.0f;
  each_four(n, [&](std::int64_t c) {
    float v[4], d[4], w[4];
    read4(v, x, c, n, fours), read4(d, dout, c, n, fours), read4(w, a.norm.weight, c, n, fours);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum += v[e], g_sum += d[e] * w[e];
  });
  const float mean = warp_sum(sum) / count, g_mean = warp_sum(g_sum) / count;
  float squares = 0.0f, gd_sum = 0.0f;
  each_four(n, [&](std::int64_t c) {
    float v[4], d[4], w[4];
    read4(v, x, c, n, fours), read4(d, dout, c, n, fours), read4(w, a.norm.weight, c, n, fours);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float difference = c + e < n ? v[e] - mean : 0.0f;
      squares += difference * difference;
      gd_sum += d[e] * w[e] * difference;
    }
  });
  const float inverse = 1.0f / sqrtf(warp_sum(squares) / count + a.norm.epsilon);
  const float gy_mean = warp_sum(gd_sum) * inverse / count;
  each_four(n, [&](std::int64_t c) {
    float v[4], d[4], w[4], to[4];
    read4(v, x, c, n, fours), read4(d, dout, c, n, fours), read4(w, a.norm.weight, c, n, fours);
    read4(to, dx, c, n, fours);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float y = (v[e] - mean) * inverse;
      to[e] += (d[e] * w[e] - g_mean - y * gy_mean) * inverse;
    }
    store4(dx + c, to, static_cast<int>(n - c), fours);
  });
  if (threadIdx.x % kWarp == 0) moments[row] = make_float2(mean, inverse);
}

/// Sums over up to kSumRows rows of 128 columns: of d, and with `moments` of d · y. Warps take every eighth
/// row; theirs are added in order. To partial[block of rows][0: Σ d, 1: Σ d · y][column].
template <class T, bool kNorm>
__global__ void __launch_bounds__(kBlock)
    column_sums_kernel(const Matrix dout, const Matrix x, const float2* moments, float* partial, bool fours) {
  start_next();
  wait_for_inputs();
  constexpr int kSums = kNorm ? 2 : 1;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t n = dout.columns, c = std::int64_t{blockIdx.x} * 4 * kWarp + lane * 4;
  const std::int64_t begin = std::int64_t{blockIdx.y} * kSumRows, end = min(begin + kSumRows, dout.rows);
  float sums[kSums][4] = {};
  if (c < n) {
#pragma unroll 4
    for (std::int64_t r = begin + warp; r < end; r += kWarps) {
      float d[4];
      read4(d, row_of<T>(dout, r), c, n, fours);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][e] += d[e];
      if constexpr (kNorm) {
        float v[4];
        read4(v, row_of<float>(x, r), c, n, fours);
        const float2 m = moments[r];
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[kSums - 1][e] += d[e] * (v[e] - m.x) * m.y;
      }
    }
  }
  add_warps<kWarps>(sums, partial + std::int64_t{blockIdx.y} * kSums * n, std::int64_t{blockIdx.x} * kTile,
                    n);
}

constexpr int kAdders = 1024;

/// to[c] += (or =) the partial sums of its column: a lane per column, a warp per every 32nd of them, in
/// order, then over warps. blockIdx.y says which sum.
__global__ void __launch_bounds__(kAdders)
    add_partial_kernel(const float* partial, int blocks, int sums, std::int64_t n, float* first,
                       float* second, bool replaces) {
  start_next();
  wait_for_inputs();
  constexpr int kParts = kAdders / kWarp;
  __shared__ float parts[kParts][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t c = std::int64_t{blockIdx.x} * kWarp + lane;
  float* const to = blockIdx.y == 0 ? first : second;
  if (to == nullptr) return;
  float sum = 0.0f;
  if (c < n) {
#pragma unroll 8
    for (int b = warp; b < blocks; b += kParts) sum += partial[(std::int64_t{b} * sums + blockIdx.y) * n + c];
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= n) return;
  sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kParts; ++w) sum += parts[w][lane];
  to[c] = replaces ? sum : to[c] + sum;
}

std::int64_t sum_blocks(std::int64_t rows) {
  return (rows + kSumRows - 1) / kSumRows;
}

cudaError_t add_partial(const float* partial, std::int64_t blocks, int sums, std::int64_t n, float* first,
                        float* second, bool replaces, cudaStream_t stream) {
  return launch_chained(add_partial_kernel, dim3(blocks_for(n, kWarp), static_cast<unsigned>(sums)), kAdders,
                        0, stream, partial, static_cast<int>(blocks), sums, n, first, second, replaces);
}

/// The sums of `x`'s columns by blocks of rows; beside moments those of LayerNorm's weight.
template <class T, bool kNorm>
cudaError_t partial_sums(const Matrix& dout, const Matrix& x, const float2* moments, float* partial,
                         bool fours, cudaStream_t stream) {
  const dim3 grid(blocks_for(dout.columns, kTile), static_cast<unsigned>(sum_blocks(dout.rows)));
  return launch_chained(column_sums_kernel<T, kNorm>, grid, kBlock, 0, stream, dout, x, moments, partial,
                        fours);
}

}  // namespace

std::size_t column_sums_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::size_t>(sum_blocks(rows) * columns) * sizeof(float);
}

cudaError_t column_sums(const Matrix& x, float* sums, bool replaces, float* workspace, cudaStream_t stream) {
  const cudaError_t error = with_type(x.dtype, [&](auto type) {
    return partial_sums<decltype(type), false>(x, Matrix(), nullptr, workspace, in_fours(x), stream);
  });
  if (error != cudaSuccess) return error;
  return add_partial(workspace, sum_blocks(x.rows), 1, x.columns, sums, nullptr, replaces, stream);
}

// Two sums of each column by blocks of rows, the smaller of either way; behind the moments of a long row.
std::size_t layer_norm_backward_bytes(std::int64_t rows, std::int64_t columns) {
  static_assert(kNormRows <= kSumRows);
  const auto blocks = static_cast<std::int64_t>(blocks_for(rows, kNormRows));
  return static_cast<std::size_t>(rows) * sizeof(float2) +
         static_cast<std::size_t>(2 * blocks * columns) * sizeof(float);
}

cudaError_t layer_norm_backward(const NormBackward& all, float* workspace, cudaStream_t stream) {
  NormBackward a = all;  // the branch apart where its rows are not the kernel's own
  if (all.branch.x.dtype != all.dout.dtype || !in_fours(all.branch.x)) a.branch.x = Matrix();
  auto* const moments = reinterpret_cast<float2*>(workspace);
  float* const partial = workspace + 2 * a.x.rows;
  const bool fours = in_fours(a.x) && in_fours(a.dout) && in_fours(a.dx) &&
                     reinterpret_cast<std::uintptr_t>(a.norm.weight) % 16 == 0;
  const bool sums = a.dweight != nullptr || a.dbias != nullptr;
  std::int64_t blocks = blocks_for(a.x.rows, kNormRows);
  cudaError_t error = with_type(a.dout.dtype, [&](auto type) {
    using T = decltype(type);
    return with_held(a.x, a.norm, [&](auto held) {
      constexpr int kHeld = decltype(held)::value;
      if constexpr (kFits<T, kHeld>) {
        if (fours) {
          if (!kBranches<kHeld>) a.branch.x = Matrix();
          return launch_chained(norm_backward_kernel<T, kHeld>, static_cast<unsigned>(blocks), kNormBlock, 0,
                                stream, a, sums ? partial : nullptr);
        }
      }
      blocks = sum_blocks(a.x.rows);
      a.branch.x = Matrix();
      const cudaError_t rows = launch_chained(long_norm_backward_kernel<T>, blocks_for(a.x.rows, kWarps),
                                              kBlock, 0, stream, a, moments, fours);
      if (rows != cudaSuccess || !sums) return rows;
      return partial_sums<T, true>(a.dout, a.x, moments, partial, fours, stream);
    });
  });
  if (error == cudaSuccess && all.branch.x.data != a.branch.x.data) error = dropout(all.branch, stream);
  if (error != cudaSuccess || !sums) return error;
  return add_partial(partial, blocks, 2, a.x.columns, a.dbias, a.dweight, a.replaces, stream);
}

}  // namespace inkling::cuda
