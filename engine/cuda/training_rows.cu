// The training ops over rows: the gradient of an activation, dropout, turned copies. All are bound by memory.
#include <cmath>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/dropout.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/norm.cuh"
#include "engine/cuda/rows.cuh"
#include "engine/cuda/training_kernels.h"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / kWarp;

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

constexpr int kPieces = 128;  // that a block takes of a row

template <class T>
__global__ void __launch_bounds__(kPieces)
    activate_backward_kernel(const Matrix x, Activation activation, const Matrix dx, const Matrix out,
                             bool wide) {
  start_next();
  wait_for_inputs();
  constexpr int kEach = kPiece<T>;
  const std::int64_t row = blockIdx.x, n = x.columns,
                     c = kEach * (std::int64_t{blockIdx.y} * kPieces + threadIdx.x);
  if (c >= n) return;
  const T* const from = row_of<T>(x, row) + c;
  T* const to = mutable_row<T>(dx, row) + c;
  T* const value = out.data != nullptr ? mutable_row<T>(out, row) + c : nullptr;
  const bool whole = wide && c + kEach <= n;
  float v[kEach] = {}, d[kEach] = {}, y[kEach];
  if (whole) {
    const uint4 v_piece = *reinterpret_cast<const uint4*>(from),
                d_piece = *reinterpret_cast<const uint4*>(to);
    unpack<T>(v_piece, v), unpack<T>(d_piece, d);
  } else {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (c + e < n) v[e] = to_float(from[e]), d[e] = to_float(to[e]);
    }
  }
  with_activation(activation, [&](auto kind) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const Pair pair = with_slope(decltype(kind)::value, v[e]);
      y[e] = pair.value, d[e] *= pair.slope;
    }
  });
  if (whole) {
    *reinterpret_cast<uint4*>(to) = packed<T>(d);
    if (value != nullptr) *reinterpret_cast<uint4*>(value) = packed<T>(y);
  } else {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (c + e >= n) break;
      to[e] = from_float<T>(d[e]);
      if (value != nullptr) value[e] = from_float<T>(y[e]);
    }
  }
}

template <class To, class From>
__global__ void dropout_kernel(const __grid_constant__ Dropout a, bool fours) {
  start_next();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x, n = a.x.columns,
                     c = 4 * (std::int64_t{blockIdx.y} * kBlock + threadIdx.x);
  if (c >= n) return;
  float v[4], add[4] = {};
  read4(v, row_of<From>(a.from, row), c, n, fours);
  if (a.residual.data != nullptr) read4(add, row_of<float>(a.residual, row), c, n, fours);
  RowDropout(a, row)(c, v);
#pragma unroll
  for (int e = 0; e < 4; ++e) v[e] += add[e];
  store4(mutable_row<To>(a.x, row) + c, v, static_cast<int>(n - c), fours);
}

/// dropout_kernel and the norm of its rows, which stay in registers: a warp per row, in fours. The same bits
/// as norm_rows() of x.
template <class From, class Normed, int kHeld>
__global__ void __launch_bounds__(kBlock) dropout_norm_kernel(const __grid_constant__ Dropout a) {
  start_next();
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int n = static_cast<int>(a.x.columns);
  using Row = RowNorm<float, kHeld>;
  wait_for_inputs();
  Row norm(a.norm, n);
  if (row >= a.x.rows) return;
  const From* const from = row_of<From>(a.from, row);
  const float* const residual = a.residual.data != nullptr ? row_of<float>(a.residual, row) : nullptr;
  float* const x = mutable_row<float>(a.x, row);
  Normed* const normed = mutable_row<Normed>(a.normed, row);
  const RowDropout drop(a, row);
  norm.of(
      [&](typename Row::Held& v) {
        float add[kHeld][4] = {};
#pragma unroll
        for (int i = 0; i < kHeld; ++i) read_four(v[i], from, Row::column(i), n);
        if (residual != nullptr) {
#pragma unroll
          for (int i = 0; i < kHeld; ++i) read_four(add[i], residual, Row::column(i), n);
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          drop(Row::column(i), v[i]);
#pragma unroll
          for (int e = 0; e < 4; ++e) v[i][e] += add[i][e];
          if (Row::column(i) < n) store4(x + Row::column(i), v[i], 4, true);
        }
      },
      n, [&](int c, const float(&v)[4]) { store4(normed + c, v, 4, true); });
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

/// dropout() without the norm.
cudaError_t dropout_alone(const Dropout& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.x.rows), blocks_for(a.x.columns, 4 * kBlock));
  const bool fours = in_fours(a.x) && in_fours(a.from) && in_fours(a.residual);
  return with_type(a.x.dtype, [&](auto to) {
    return with_type(a.from.dtype, [&](auto from) {
      return launch_chained(dropout_kernel<decltype(to), decltype(from)>, grid, kBlock, 0, stream, a, fours);
    });
  });
}

}  // namespace

cudaError_t transpose(const Matrix& x, const Matrix& out, cudaStream_t stream) {
  return with_type(x.dtype, [&](auto in) {
    return with_type(out.dtype, [&](auto to) {
      const dim3 blocks(blocks_for(out.rows, kTransposed), blocks_for(out.columns, kTransposed));
      return launch(transpose_kernel<decltype(in), decltype(to)>, blocks, dim3(kTransposed, kWarps), 0,
                    stream, x, out);
    });
  });
}

cudaError_t activate_backward(const Matrix& x, Activation activation, const Matrix& dx,
                              const Matrix& activated, cudaStream_t stream) {
  const bool wide = in_pieces(x) && in_pieces(dx) && in_pieces(activated);
  return with_type(x.dtype, [&](auto type) {
    using T = decltype(type);
    const dim3 grid(static_cast<unsigned>(x.rows), blocks_for(x.columns, kPiece<T> * kPieces));
    return launch_chained(activate_backward_kernel<T>, grid, kPieces, 0, stream, x, activation, dx, activated,
                          wide);
  });
}

cudaError_t dropout(const Dropout& a, cudaStream_t stream) {
  if (a.normed.data == nullptr) return dropout_alone(a, stream);
  const bool fours = in_fours(a.x) && in_fours(a.from) && in_fours(a.residual) && in_fours(a.normed);
  return with_held(a.x, a.norm, [&](auto held) {
    constexpr int kHeld = decltype(held)::value;
    if constexpr (kHeld != 0) {
      if (fours && (a.from.dtype == DType::f32 || a.from.dtype == a.normed.dtype)) {
        return with_type(a.normed.dtype, [&](auto type) {
          using Normed = decltype(type);
          auto* const kernel = a.from.dtype == DType::f32 ? dropout_norm_kernel<float, Normed, kHeld>
                                                          : dropout_norm_kernel<Normed, Normed, kHeld>;
          return launch_chained(kernel, blocks_for(a.x.rows, kWarps), kBlock, 0, stream, a);
        });
      }
    }
    const cudaError_t error = dropout_alone(a, stream);
    return error != cudaSuccess ? error : norm_rows({a.x, nullptr, a.norm, a.normed, Start::in_turn}, stream);
  });
}

}  // namespace inkling::cuda
