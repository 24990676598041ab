// The training ops over rows: gradients of norm and activation, dropout, the loss. All are bound by memory.
#include <cmath>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/norm.cuh"
#include "engine/cuda/training_kernels.h"
#include "engine/philox.h"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / kWarp;

unsigned blocks_for(std::int64_t n, std::int64_t per) {
  return static_cast<unsigned>((n + per - 1) / per);
}

template <class T>
__device__ inline const T* row_of(const Matrix& m, std::int64_t row) {
  return static_cast<const T*>(m.data) + row * m.stride;
}
template <class T>
__device__ inline T* mutable_row(const Matrix& m, std::int64_t row) {
  return static_cast<T*>(m.data) + row * m.stride;
}

/// Whether rows can be met four elements at a time.
bool in_fours(const Matrix& m) {
  return m.data == nullptr || (m.columns % 4 == 0 && m.stride % 4 == 0 &&
                               reinterpret_cast<std::uintptr_t>(m.data) % (4 * dtype_size(m.dtype)) == 0);
}

/// Neighbours [c, c + 4) of a row of n; zeros beyond.
template <class T>
__device__ inline void read4(float (&v)[4], const T* row, std::int64_t c, std::int64_t n, bool fours) {
  if (fours) {
    if constexpr (sizeof(T) == 4) {
      const float4 all = *reinterpret_cast<const float4*>(row + c);
      v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
    } else {
      const uint2 all = *reinterpret_cast<const uint2*>(row + c);
      const T* const parts = reinterpret_cast<const T*>(&all);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = to_float(parts[e]);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] = c + e < n ? to_float(row[c + e]) : 0.0f;
}

/// Calls body(c) for a warp's share of the columns, in fours.
template <class Body>
__device__ inline void each_four(std::int64_t columns, const Body& body) {
  for (std::int64_t c = 4 * (threadIdx.x % kWarp); c < columns; c += 4 * kWarp) body(c);
}

/// With y = (x − mean)/σ and g = dout · weight: dx += (g − mean(g) − y · mean(g · y)) / σ. A warp per row;
/// leaves (mean, 1/σ) for the sums over rows.
template <class T>
__global__ void __launch_bounds__(kBlock)
    norm_backward_kernel(const NormBackward a, float2* moments, bool fours) {
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

constexpr int kSumRows = 256;  // of a block of column sums

/// Sums over up to kSumRows rows of 128 columns: of d, and with `moments` of d · y. Warps take every eighth
/// row; theirs are added in order. To partial[block of rows][0: Σ d, 1: Σ d · y][column].
template <class T, bool kNorm>
__global__ void __launch_bounds__(kBlock)
    column_sums_kernel(const Matrix dout, const Matrix x, const float2* moments, float* partial, bool fours) {
  start_next();
  wait_for_inputs();
  constexpr int kSums = kNorm ? 2 : 1;
  __shared__ float shared[kWarps][kSums][4 * kWarp];
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
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
#pragma unroll
    for (int e = 0; e < 4; ++e) shared[warp][s][lane * 4 + e] = sums[s][e];
  }
  __syncthreads();
  const int s = threadIdx.x / (4 * kWarp), column = threadIdx.x % (4 * kWarp);
  const std::int64_t at = std::int64_t{blockIdx.x} * 4 * kWarp + column;
  if (s >= kSums || at >= n) return;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += shared[w][s][column];
  partial[(std::int64_t{blockIdx.y} * kSums + s) * n + at] = sum;
}

/// to[c] += the partial sums of its column, in order. blockIdx.y says which sum.
__global__ void add_partial_kernel(const float* partial, int blocks, int sums, std::int64_t n, float* first,
                                   float* second) {
  start_next();
  wait_for_inputs();
  const std::int64_t c = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  float* const to = blockIdx.y == 0 ? first : second;
  if (c >= n || to == nullptr) return;
  float sum = 0.0f;
  for (int b = 0; b < blocks; ++b) sum += partial[(std::int64_t{b} * sums + blockIdx.y) * n + c];
  to[c] += sum;
}

struct Pair {
  float value, slope;
};

// engine/cpu/training_rows.h derives both.
__device__ inline Pair with_slope(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu_tanh: {
      constexpr float kRoot = 0.7978845608028654f;  // √(2/π)
      const float near = fminf(fmaxf(x, -16.0f), 16.0f), squared = near * near;
      const float e = __expf(-2.0f * kRoot * fabsf(near) * fmaf(squared, 0.044715f, 1.0f));
      const float inverse = __fdividef(1.0f, 1.0f + e), tail = e * inverse;
      const float s = tail + (near > 0.0f ? (1.0f - e) * inverse : 0.0f);
      const float steep = near * 2.0f * kRoot * fmaf(squared, 3 * 0.044715f, 1.0f);
      return {x * s, fmaf(tail * inverse, steep, s)};
    }
    case Activation::gelu_erf: {
      const float area = 0.5f + 0.5f * erff(x * 0.70710678118654752f);
      return {x * area, fmaf(x * 0.3989422804014327f, __expf(-0.5f * x * x), area)};
    }
    case Activation::relu:
      return {fmaxf(x, 0.0f), x > 0.0f ? 1.0f : 0.0f};
    case Activation::none:
      break;
  }
  return {x, 1.0f};
}

template <class T>
__global__ void activate_backward_kernel(const Matrix x, Activation activation, const Matrix dx,
                                         const Matrix out, bool fours) {
  start_next();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, n = x.columns,
                     c = 4 * (std::int64_t{blockIdx.y} * kBlock + threadIdx.x);
  if (c >= n) return;
  float v[4], d[4], y[4];
  read4(v, row_of<T>(x, row), c, n, fours);
  read4(d, row_of<T>(dx, row), c, n, fours);
  with_activation(activation, [&](auto kind) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const Pair pair = with_slope(decltype(kind)::value, v[e]);
      y[e] = pair.value, d[e] *= pair.slope;
    }
  });
  store4(mutable_row<T>(dx, row) + c, d, static_cast<int>(n - c), fours);
  if (out.data != nullptr) store4(mutable_row<T>(out, row) + c, y, static_cast<int>(n - c), fours);
}

template <class To, class From>
__global__ void dropout_kernel(const Dropout a, bool fours) {
  start_next();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, n = a.x.columns,
                     c = 4 * (std::int64_t{blockIdx.y} * kBlock + threadIdx.x);
  if (c >= n) return;
  float v[4], add[4] = {};
  read4(v, row_of<From>(a.from, row), c, n, fours);
  if (a.residual.data != nullptr) read4(add, row_of<float>(a.residual, row), c, n, fours);
  if (a.threshold > 0) {
    int low = 0, high = a.sequences;  // the sequence of the row: the last that begins at or before it
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (a.cu_seqlens[middle] <= row ? low : high) = middle;
    }
    while (low + 1 < a.sequences && a.cu_seqlens[low + 1] <= row) ++low;
    const PhiloxWords words =
        philox({static_cast<std::uint32_t>(c / 4), static_cast<std::uint32_t>(row - a.cu_seqlens[low]),
                (std::uint32_t{1} << 31) + static_cast<std::uint32_t>(low), a.offset},
               a.seed);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      v[e] = words[static_cast<std::size_t>(e)] >= a.threshold ? v[e] * a.scale : 0.0f;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] += add[e];
  store4(mutable_row<To>(a.x, row) + c, v, static_cast<int>(n - c), fours);
}

/// A maximum and the sum of e^(x − maximum).
struct SoftSum {
  float top, sum;
};
__device__ inline SoftSum merged(SoftSum a, SoftSum b) {
  const float top = fmaxf(a.top, b.top);
  if (top == -INFINITY) return {top, 0.0f};
  return {top, a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top)};
}

/// A block of kThreads per row; the second reading of a row finds it in L2.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const Matrix logits, const std::int32_t* targets, float scale, float* losses,
                         bool fours) {
  start_next();
  wait_for_inputs();
  __shared__ SoftSum parts[kThreads / kWarp];
  const std::int64_t row = blockIdx.x, n = logits.columns;
  T* const x = mutable_row<T>(logits, row);
  const std::int32_t target = targets[row];
  const float zeros[4] = {};
  if (target < 0) {
    if (threadIdx.x == 0) losses[row] = 0.0f;
    if (scale == 0.0f) return;
    for (std::int64_t c = 4 * threadIdx.x; c < n; c += 4 * kThreads) {
      store4(x + c, zeros, static_cast<int>(n - c), fours && c + 4 <= n);
    }
    return;
  }
  SoftSum all{-INFINITY, 0.0f};
  for (std::int64_t c = 4 * threadIdx.x; c < n; c += 4 * kThreads) {
    float v[4];
    read4(v, x, c, n, fours && c + 4 <= n);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = c + e < n ? v[e] : -INFINITY;
    const float top = fmaxf(fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])), all.top);
    float sum = all.sum * __expf(all.top - top);
#pragma unroll
    for (int e = 0; e < 4; ++e) sum += __expf(v[e] - top);
    all = {top, sum};
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    all = merged(all,
                 {__shfl_xor_sync(0xffffffffu, all.top, step), __shfl_xor_sync(0xffffffffu, all.sum, step)});
  }
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = all;
  __syncthreads();
  all = parts[0];
  for (int w = 1; w < kThreads / kWarp; ++w) all = merged(all, parts[w]);
  if (threadIdx.x == 0) losses[row] = (all.top - to_float(x[target])) + logf(all.sum);
  if (scale == 0.0f) return;
  __syncthreads();  // x[target] has been read
  const float factor = scale / all.sum;
  for (std::int64_t c = 4 * threadIdx.x; c < n; c += 4 * kThreads) {
    const bool whole = fours && c + 4 <= n;
    float v[4];
    read4(v, x, c, n, whole);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = __expf(v[e] - all.top) * factor - (c + e == target ? scale : 0.0f);
    store4(x + c, v, static_cast<int>(n - c), whole);
  }
}

constexpr int kTransposed = 32;

template <class In, class Out>
__global__ void transpose_kernel(const Matrix x, const Matrix out) {
  start_next();
  wait_for_inputs();
  __shared__ float tile[kTransposed][kTransposed + 1];
  const std::int64_t row = std::int64_t{blockIdx.y} * kTransposed,
                     column = std::int64_t{blockIdx.x} * kTransposed;
  for (int r = threadIdx.y; r < kTransposed; r += kWarps) {
    const std::int64_t i = row + r, j = column + threadIdx.x;
    tile[r][threadIdx.x] = i < x.rows && j < x.columns ? to_float(row_of<In>(x, i)[j]) : 0.0f;
  }
  __syncthreads();
  for (int r = threadIdx.y; r < kTransposed; r += kWarps) {
    const std::int64_t j = column + r, i = row + threadIdx.x;
    if (j < out.rows && i < out.columns) mutable_row<Out>(out, j)[i] = from_float<Out>(tile[threadIdx.x][r]);
  }
}

std::int64_t sum_blocks(std::int64_t rows) {
  return (rows + kSumRows - 1) / kSumRows;
}

}  // namespace

cudaError_t transpose(const Matrix& x, const Matrix& out, cudaStream_t stream) {
  return with_type(x.dtype, [&](auto in) {
    return with_type(out.dtype, [&](auto to) {
      const dim3 blocks(blocks_for(out.rows, kTransposed), blocks_for(out.columns, kTransposed));
      transpose_kernel<decltype(in), decltype(to)><<<blocks, dim3(kTransposed, kWarps), 0, stream>>>(x, out);
      return cudaGetLastError();
    });
  });
}

std::size_t column_sums_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::size_t>(sum_blocks(rows) * columns) * sizeof(float);
}

cudaError_t column_sums(const Matrix& x, float* sums, float* workspace, cudaStream_t stream) {
  const auto blocks = sum_blocks(x.rows);
  const dim3 grid(blocks_for(x.columns, 4 * kWarp), static_cast<unsigned>(blocks));
  const cudaError_t error = with_type(x.dtype, [&](auto type) {
    return launch_chained(column_sums_kernel<decltype(type), false>, grid, kBlock, 0, stream, x, Matrix(),
                          static_cast<const float2*>(nullptr), workspace, in_fours(x));
  });
  if (error != cudaSuccess) return error;
  return launch_chained(add_partial_kernel, blocks_for(x.columns, kBlock), kBlock, 0, stream,
                        static_cast<const float*>(workspace), static_cast<int>(blocks), 1, x.columns, sums,
                        static_cast<float*>(nullptr));
}

std::size_t layer_norm_backward_bytes(std::int64_t rows, std::int64_t columns) {
  return static_cast<std::size_t>(rows) * sizeof(float2) + 2 * column_sums_bytes(rows, columns);
}

cudaError_t layer_norm_backward(const NormBackward& a, float* workspace, cudaStream_t stream) {
  auto* const moments = reinterpret_cast<float2*>(workspace);
  float* const partial = workspace + 2 * a.x.rows;
  const bool fours = in_fours(a.x) && in_fours(a.dout) && in_fours(a.dx) &&
                     reinterpret_cast<std::uintptr_t>(a.norm.weight) % 16 == 0;
  const auto blocks = sum_blocks(a.x.rows);
  const dim3 grid(blocks_for(a.x.columns, 4 * kWarp), static_cast<unsigned>(blocks));
  const bool sums = a.dweight != nullptr || a.dbias != nullptr;
  const cudaError_t error = with_type(a.dout.dtype, [&](auto type) {
    using T = decltype(type);
    const cudaError_t rows = launch_chained(norm_backward_kernel<T>, blocks_for(a.x.rows, kWarps), kBlock, 0,
                                            stream, a, moments, fours);
    if (rows != cudaSuccess || !sums) return rows;
    return launch_chained(column_sums_kernel<T, true>, grid, kBlock, 0, stream, a.dout, a.x,
                          static_cast<const float2*>(moments), partial, fours);
  });
  if (error != cudaSuccess || !sums) return error;
  return launch_chained(add_partial_kernel, dim3(blocks_for(a.x.columns, kBlock), 2), kBlock, 0, stream,
                        static_cast<const float*>(partial), static_cast<int>(blocks), 2, a.x.columns, a.dbias,
                        a.dweight);
}

cudaError_t activate_backward(const Matrix& x, Activation activation, const Matrix& dx,
                              const Matrix& activated, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows), blocks_for(x.columns, 4 * kBlock));
  const bool fours = in_fours(x) && in_fours(dx) && in_fours(activated);
  return with_type(x.dtype, [&](auto type) {
    return launch_chained(activate_backward_kernel<decltype(type)>, grid, kBlock, 0, stream, x, activation,
                          dx, activated, fours);
  });
}

cudaError_t dropout(const Dropout& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.x.rows), blocks_for(a.x.columns, 4 * kBlock));
  const bool fours = in_fours(a.x) && in_fours(a.from) && in_fours(a.residual);
  return with_type(a.x.dtype, [&](auto to) {
    return with_type(a.from.dtype, [&](auto from) {
      return launch_chained(dropout_kernel<decltype(to), decltype(from)>, grid, kBlock, 0, stream, a, fours);
    });
  });
}

cudaError_t cross_entropy(const Matrix& logits, const std::int32_t* targets, float scale, float* losses,
                          cudaStream_t stream) {
  const bool fours = logits.stride % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(logits.data) % (4 * dtype_size(logits.dtype)) == 0;
  const auto rows = static_cast<unsigned>(logits.rows);
  return with_type(logits.dtype, [&](auto type) {
    using T = decltype(type);
    if (logits.columns <= 1024) {
      return launch_chained(cross_entropy_kernel<T, kWarp>, rows, kWarp, 0, stream, logits, targets, scale,
                            losses, fours);
    }
    return launch_chained(cross_entropy_kernel<T, 1024>, rows, 1024, 0, stream, logits, targets, scale,
                          losses, fours);
  });
}

}  // namespace inkling::cuda
