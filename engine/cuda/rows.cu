// Ops over rows: normalisation, embedding, softmax, activation, and the layout of weights. One warp or one
// block per row, sums in an order that the width alone decides. All are bound by memory.
#include <cmath>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/norm.cuh"
#include "engine/cuda/rows.cuh"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256, kRowsPerBlock = kBlock / kWarp;

/// A warp per row.
template <class In, class Out, int kHeld>
__global__ void norm_kernel(const NormRows a) {
  start_next();
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarp;
  const In* const x = static_cast<const In*>(a.x.data);
  RowNorm<In, kHeld> norm(a.norm, static_cast<int>(a.x.columns));
  wait_for_inputs();
  if (row >= a.out.rows) return;
  const std::int64_t from = a.rows == nullptr ? row : a.rows[row];
  Out* const out = static_cast<Out*>(a.out.data) + row * a.out.stride;
  const int columns = static_cast<int>(a.out.columns);
  const bool fours = columns % 4 == 0 && a.out.stride % 4 == 0 &&
                     reinterpret_cast<std::uintptr_t>(a.out.data) % (4 * sizeof(Out)) == 0;
  norm(x + from * a.x.stride, (columns + 3) / 4 * 4,
       [&](int c, const float(&v)[4]) { store4(out + c, v, columns - c, fours); });
}

/// Rows without a norm, in fours: a block for kBlock of them, so that few long rows fill the GPU too.
template <class In, class Out>
__global__ void convert_kernel(const Matrix x, const Matrix out) {
  start_next();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, c = 4 * (std::int64_t{blockIdx.y} * kBlock + threadIdx.x);
  if (c >= out.columns) return;
  float v[4] = {};
  if (c < x.columns)
    read_four(v, static_cast<const In*>(x.data) + row * x.stride, static_cast<int>(c),
              static_cast<int>(x.columns));
  store4(static_cast<Out*>(out.data) + row * out.stride + c, v, 4, true);
}

template <class T>
__global__ void embed_kernel(const Embed a) {
  start_next();
  wait_for_inputs();
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
      if (args.norm.weight == nullptr && args.rows == nullptr && in_fours(args.x) && in_fours(args.out)) {
        const dim3 grid(static_cast<unsigned>(args.out.rows), blocks_for(args.out.columns, 4 * kBlock));
        return launch_chained(convert_kernel<In, Out>, grid, kBlock, 0, stream, args.x, args.out);
      }
      return with_held(args.x, args.norm, [&](auto held) {
        return launch_chained(norm_kernel<In, Out, decltype(held)::value>,
                              Grid(blocks_for(args.out.rows, kRowsPerBlock), args.start), kBlock, 0, stream,
                              args);
      });
    });
  });
}

cudaError_t embed(const Embed& args, cudaStream_t stream) {
  return with_type(args.token.dtype, [&](auto type) {
    return launch_chained(embed_kernel<decltype(type)>, blocks_for(args.out.rows, 1), kBlock, 0, stream,
                          args);
  });
}

cudaError_t softmax(const Matrix& x, bool logarithm, cudaStream_t stream) {
  return launch(softmax_kernel, blocks_for(x.rows, 1), kBlock, 0, stream, x, logarithm);
}

cudaError_t activate(const Matrix& x, Activation activation, cudaStream_t stream) {
  return launch(activate_kernel, blocks_for(x.rows, 1), kBlock, 0, stream, x, activation);
}

cudaError_t pack(const MatrixSource& source, const Matrix& out, cudaStream_t stream) {
  return with_type(source.dtype, [&](auto in) {
    return with_type(out.dtype, [&](auto to) {
      return launch(pack_kernel<decltype(in), decltype(to)>, blocks_for(source.n, 1), kBlock, 0, stream,
                    source, out);
    });
  });
}

}  // namespace inkling::cuda
