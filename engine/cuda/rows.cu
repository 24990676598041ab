// Ops over rows: normalisation, embedding, softmax, activation, and the layout of weights. One warp or one
// block per row, sums in an order that the width alone decides. All are bound by memory.
#include <cmath>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/launch.cuh"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256, kRowsPerBlock = kBlock / kWarp;

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

unsigned blocks_for(std::int64_t n, std::int64_t per) {
  return static_cast<unsigned>((n + per - 1) / per);
}

/// A warp per row. kHeld: values of the row that a lane keeps in registers; 0: rows of any width, read three
/// times. The held form asks for everything at once and without a branch, beyond the row for its last element
/// again: a branch around each load would wait for memory once per column.
template <class In, class Out, int kHeld>
__global__ void norm_kernel(const NormRows a) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp, width = static_cast<int>(a.x.columns),
            columns = static_cast<int>(a.out.columns);
  if (row >= a.out.rows) return;
  const std::int64_t from = a.rows == nullptr ? row : a.rows[row];
  const In* x = static_cast<const In*>(a.x.data) + from * a.x.stride;
  Out* out = static_cast<Out*>(a.out.data) + row * a.out.stride;
  const bool normed = a.norm.weight != nullptr, shifted = normed && a.norm.bias != nullptr;

  constexpr int kCount = kHeld == 0 ? 1 : kHeld;
  float value[kCount], gain[kCount], shift[kCount];
  const auto load = [&](int i, int c) {
    const int at = min(c, width - 1);
    value[i] = c < width ? to_float(x[at]) : 0.0f;
    gain[i] = normed ? __ldg(a.norm.weight + at) : 1.0f;
    shift[i] = shifted ? __ldg(a.norm.bias + at) : 0.0f;
  };
  // Calls body(i, c) for the lane's columns in order, with value[i], gain[i] and shift[i] of column c.
  const auto each = [&](const auto& body) {
    if constexpr (kHeld == 0) {
      for (int c = lane; c < columns; c += kWarp) load(0, c), body(0, c);
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) body(i, lane + i * kWarp);
    }
  };
  if constexpr (kHeld != 0) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) load(i, lane + i * kWarp);
  }
  float mean = 0.0f, scale = 1.0f;
  if (normed) {
    each([&](int i, int) { mean += value[i]; });
    mean = warp_sum(mean) / static_cast<float>(width);
    float squares = 0.0f;
    each([&](int i, int c) {
      const float d = c < width ? value[i] - mean : 0.0f;
      squares += d * d;
    });
    scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + a.norm.epsilon);
  }
  each([&](int i, int c) {
    const float result = c < width ? (value[i] - mean) * scale * gain[i] + shift[i] : 0.0f;
    if (c < columns) out[c] = from_float<Out>(result);
  });
}

template <class T>
__global__ void embed_kernel(const Embed a) {
  const std::int64_t row = blockIdx.x;
  const T* token = static_cast<const T*>(a.token.data) + a.ids[row] * a.token.stride;
  const float* position = static_cast<const float*>(a.position.data) + a.positions[row] * a.position.stride;
  float* out = static_cast<float*>(a.out.data) + row * a.out.stride;
  for (int c = threadIdx.x; c < a.out.columns; c += kBlock) out[c] = to_float(token[c]) + position[c];
}

/// A value that every thread of the block gets: the fold of all of theirs, by warps, then over warps in
/// order.
template <class Fold>
__device__ float block_fold(float value, const Fold& fold) {
  __shared__ float parts[kRowsPerBlock];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fold(value, __shfl_xor_sync(0xffffffffu, value, step));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = parts[0];
  for (int i = 1; i < kRowsPerBlock; ++i) value = fold(value, parts[i]);
  return value;
}

__global__ void softmax_kernel(const Matrix x, bool logarithm) {
  float* row = static_cast<float*>(x.data) + blockIdx.x * x.stride;
  float top = -INFINITY;
  for (std::int64_t c = threadIdx.x; c < x.columns; c += kBlock) top = fmaxf(top, row[c]);
  top = block_fold(top, [](float a, float b) { return fmaxf(a, b); });
  if (top == -INFINITY) {
    if (!logarithm) {
      for (std::int64_t c = threadIdx.x; c < x.columns; c += kBlock) row[c] = 0.0f;
    }
    return;
  }
  float sum = 0.0f;
  for (std::int64_t c = threadIdx.x; c < x.columns; c += kBlock) sum += expf(row[c] - top);
  sum = block_fold(sum, [](float a, float b) { return a + b; });
  const float log_sum = logf(sum);
  for (std::int64_t c = threadIdx.x; c < x.columns; c += kBlock) {
    row[c] = logarithm ? row[c] - top - log_sum : expf(row[c] - top) / sum;
  }
}

__global__ void activate_kernel(const Matrix x, Activation activation) {
  float* row = static_cast<float*>(x.data) + blockIdx.x * x.stride;
  for (std::int64_t c = threadIdx.x; c < x.columns; c += kBlock) row[c] = activated(activation, row[c]);
}

template <class In, class Out>
__global__ void pack_kernel(const MatrixSource source, const Matrix out) {
  const std::int64_t n = blockIdx.x;
  const In* from = static_cast<const In*>(source.data) + n * source.n_stride;
  Out* to = static_cast<Out*>(out.data) + n * out.stride;
  for (std::int64_t k = threadIdx.x; k < out.stride; k += kBlock) {
    to[k] = from_float<Out>(k < source.k ? to_float(from[k * source.k_stride]) : 0.0f);
  }
}

}  // namespace

cudaError_t norm_rows(const NormRows& args, cudaStream_t stream) {
  return with_type(args.x.dtype, [&](auto in) {
    return with_type(args.out.dtype, [&](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      const auto run = [&](auto* kernel) {
        kernel<<<blocks_for(args.out.rows, kRowsPerBlock), kBlock, 0, stream>>>(args);
        return cudaGetLastError();
      };
      if (args.out.columns <= 16 * kWarp) return run(norm_kernel<In, Out, 16>);
      if (args.out.columns <= 24 * kWarp) return run(norm_kernel<In, Out, 24>);
      if (args.out.columns <= 40 * kWarp) return run(norm_kernel<In, Out, 40>);
      return run(norm_kernel<In, Out, 0>);
    });
  });
}

cudaError_t embed(const Embed& args, cudaStream_t stream) {
  return with_type(args.token.dtype, [&](auto type) {
    embed_kernel<decltype(type)><<<blocks_for(args.out.rows, 1), kBlock, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t softmax(const Matrix& x, bool logarithm, cudaStream_t stream) {
  softmax_kernel<<<blocks_for(x.rows, 1), kBlock, 0, stream>>>(x, logarithm);
  return cudaGetLastError();
}

cudaError_t activate(const Matrix& x, Activation activation, cudaStream_t stream) {
  activate_kernel<<<blocks_for(x.rows, 1), kBlock, 0, stream>>>(x, activation);
  return cudaGetLastError();
}

cudaError_t pack(const MatrixSource& source, const Matrix& out, cudaStream_t stream) {
  return with_type(source.dtype, [&](auto in) {
    return with_type(out.dtype, [&](auto to) {
      pack_kernel<decltype(in), decltype(to)><<<blocks_for(source.n, 1), kBlock, 0, stream>>>(source, out);
      return cudaGetLastError();
    });
  });
}

}  // namespace inkling::cuda
