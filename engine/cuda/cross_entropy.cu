// The loss of each row of logits, and its gradient in their place:
//   loss = log Σ e^x − x[target],  x ← scale · (e^x / Σ e^x − onehot(target)).
// A block per row reads it once, in pieces of 16 bytes, four of them asked for at a time, and keeps it in
// shared memory for the second pass; a row that is too long for that is read again, from L2. Two blocks of
// 100 KB share a processor, so that one reads while the other computes. e^x by ex2.approx, within 2 units of
// 2^-23.
//
// Bound by memory: 16384 × 50257 logits in bf16 are 1.65 GB read and as much written, 0.77 ms at 4.3 TB/s;
// two exponentials each are 0.45 ms of their units. Measured on an H200: 1.0 ms (README.md). Oracle: f64
// (engine/cpu/reference.h), by tests/engine/cuda_training.cpp.
#include <cmath>

#include "engine/cuda/chain.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/norm.cuh"
#include "engine/cuda/rows.cuh"
#include "engine/cuda/training_kernels.h"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 512, kAhead = 4;
constexpr std::int64_t kFew = 1024;  // up to so many columns a warp is enough

/// A maximum and the sum of e^(x − maximum); of nothing (−∞, 0).
struct SoftSum {
  float top, sum;

  /// The sum as it is beside a maximum of `higher`.
  __device__ float beside(float higher) const { return top == -INFINITY ? 0.0f : sum * __expf(top - higher); }
};

/// Of all lanes of a warp.
__device__ inline SoftSum warp_merged(const SoftSum& own) {
  SoftSum all = own;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    all.top = fmaxf(all.top, __shfl_xor_sync(0xffffffffu, all.top, step));
  }
  all.sum = warp_sum(own.beside(all.top));
  return all;
}

/// kHeld: whether shared memory has room for the row. `wide`: whether its pieces are aligned.
template <class T, int kThreads, bool kHeld>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    cross_entropy_kernel(const Matrix logits, const std::int32_t* targets, float scale, float* losses,
                         bool wide) {
  start_next();
  wait_for_inputs();
  constexpr int kEach = kPiece<T>, kWarps = kThreads / kWarp;
  extern __shared__ uint4 held[];
  __shared__ SoftSum parts[kWarps];
  const std::int64_t row = blockIdx.x;
  T* const x = static_cast<T*>(logits.data) + row * logits.stride;
  uint4* const pieces = reinterpret_cast<uint4*>(x);
  const int n = static_cast<int>(logits.columns), whole = wide ? n / kEach : 0;  // pieces
  const int thread = static_cast<int>(threadIdx.x), rest = whole * kEach + thread;
  const int target = targets[row];
  if (target < 0) {
    if (thread == 0) losses[row] = 0.0f;
    if (scale == 0.0f) return;
    for (int p = thread; p < whole; p += kThreads) pieces[p] = make_uint4(0, 0, 0, 0);
    for (int c = rest; c < n; c += kThreads) x[c] = from_float<T>(0.0f);
    return;
  }
  const float chosen = thread == 0 ? to_float(x[target]) : 0.0f;

  SoftSum all{-INFINITY, 0.0f};
  for (int first = thread; first < whole; first += kAhead * kThreads) {
    uint4 piece[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) piece[a] = pieces[min(first + a * kThreads, whole - 1)];
    float top = all.top;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + a * kThreads >= whole) break;
      if constexpr (kHeld) held[first + a * kThreads] = piece[a];
      float v[kEach];
      unpack<T>(piece[a], v);
#pragma unroll
      for (int e = 0; e < kEach; ++e) top = fmaxf(top, v[e]);
    }
    all = {top, all.beside(top)};
    const float from = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (first + a * kThreads >= whole) break;
      float v[kEach];
      unpack<T>(piece[a], v);
#pragma unroll
      for (int e = 0; e < kEach; ++e) all.sum += __expf(v[e] - from);
    }
  }
  for (int c = rest; c < n; c += kThreads) {
    const float v = to_float(x[c]), top = fmaxf(all.top, v);
    all = {top, all.beside(top) + SoftSum{v, 1.0f}.beside(top)};
  }
  all = warp_merged(all);
  const int lane = thread % kWarp;
  if (lane == 0) parts[thread / kWarp] = all;
  __syncthreads();  // x[target] has been read, too
  all = warp_merged(lane < kWarps ? parts[lane] : SoftSum{-INFINITY, 0.0f});
  if (thread == 0) losses[row] = (all.top - chosen) + logf(all.sum);
  if (scale == 0.0f) return;

  const float factor = scale / all.sum;
  for (int p = thread; p < whole; p += kThreads) {
    float v[kEach];
    unpack<T>(kHeld ? held[p] : pieces[p], v);
#pragma unroll
    for (int e = 0; e < kEach; ++e) v[e] = __expf(v[e] - all.top) * factor;
    if (target / kEach == p) {
#pragma unroll
      for (int e = 0; e < kEach; ++e) v[e] -= e == target % kEach ? scale : 0.0f;
    }
    pieces[p] = packed<T>(v);
  }
  for (int c = rest; c < n; c += kThreads) {
    x[c] = from_float<T>(__expf(to_float(x[c]) - all.top) * factor - (c == target ? scale : 0.0f));
  }
}

}  // namespace

cudaError_t cross_entropy(const Matrix& logits, const std::int32_t* targets, float scale, float* losses,
                          cudaStream_t stream) {
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  const bool wide = in_pieces(logits);
  const std::size_t bytes = static_cast<std::size_t>(logits.columns) * dtype_size(logits.dtype);
  const bool held = wide && bytes + sizeof(SoftSum) * kBlock / kWarp <= static_cast<std::size_t>(most);
  const auto rows = static_cast<unsigned>(logits.rows);
  return with_type(logits.dtype, [&](auto type) {
    using T = decltype(type);
    const auto launch = [&](auto* kernel, int threads, std::size_t shared) {
      return launch_chained(kernel, rows, threads, shared, stream, logits, targets, scale, losses, wide);
    };
    if (logits.columns <= kFew) return launch(cross_entropy_kernel<T, kWarp, false>, kWarp, 0);
    if (held) return launch(cross_entropy_kernel<T, kBlock, true>, kBlock, bytes);
    return launch(cross_entropy_kernel<T, kBlock, false>, kBlock, 0);
  });
}

}  // namespace inkling::cuda
