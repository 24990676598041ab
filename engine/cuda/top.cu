// The k largest of each row of logits: two readings of the row by one block.
//
// Each thread finds the largest of its share; the k-th of those is a bound that at least k elements reach,
// and hardly more do. The second reading collects what reaches it, and a bitonic sort by (value, index) puts
// it in order. A row with more equals than the list holds takes its elements one maximum after the other.
#include <algorithm>
#include <cmath>

#include "engine/cuda/chain.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/launch.cuh"

namespace inkling::cuda {
namespace {

constexpr int kThreads = 1024, kList = 4096;  // kMostTop ≤ kThreads

/// Larger is earlier: the value, then the smaller index. Never zero.
__device__ inline unsigned long long key_of(float value, unsigned index) {
  unsigned bits = __float_as_uint(value == 0.0f ? 0.0f : value);  // −0 is 0
  bits = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(bits) << 32 | (0xffffffffu - index);
}
__device__ inline unsigned index_of(unsigned long long key) {
  return 0xffffffffu - static_cast<unsigned>(key);
}

/// Falling order of `count` keys, a power of two.
__device__ inline void sort(unsigned long long* keys, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < count; i += kThreads) {
        const int other = i ^ step;
        if (other <= i) continue;
        const bool falling = (i & size) == 0;
        if ((keys[i] < keys[other]) == falling) {
          const unsigned long long kept = keys[i];
          keys[i] = keys[other];
          keys[other] = kept;
        }
      }
    }
  }
  __syncthreads();
}

/// The largest key of the row below `below`, in keys[0].
__device__ inline unsigned long long largest_below(const float* row, int n, unsigned long long below,
                                                   unsigned long long* keys) {
  unsigned long long best = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const unsigned long long key = key_of(row[i], i);
    if (key < below && key > best) best = key;
  }
  __syncthreads();
  keys[threadIdx.x] = best;
  sort(keys, kThreads);
  return keys[0];
}

__global__ void __launch_bounds__(kThreads)
    top_kernel(const Matrix x, int k, float* values, std::int32_t* ids) {
  __shared__ unsigned long long keys[kList];
  __shared__ int found;
  start_next();
  wait_for_inputs();
  const float* const row = static_cast<const float*>(x.data) + blockIdx.x * x.stride;
  const int n = static_cast<int>(x.columns);
  const auto put = [&](int place, unsigned long long key) {
    const std::int64_t at = std::int64_t{blockIdx.x} * k + place;
    ids[at] = static_cast<std::int32_t>(index_of(key));
    values[at] = row[index_of(key)];
  };

  unsigned long long best = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += kThreads) best = max(best, key_of(row[i], i));
  keys[threadIdx.x] = best;
  sort(keys, kThreads);
  const unsigned long long bound =
      keys[k - 1];  // 0 where the row has fewer elements than threads have shares
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const unsigned long long key = key_of(row[i], i);
    if (key < bound) continue;
    const int place = atomicAdd(&found, 1);
    if (place < kList) keys[place] = key;
  }
  __syncthreads();
  if (found <= kList) {
    int count = 1;
    while (count < found) count *= 2;
    for (int i = found + static_cast<int>(threadIdx.x); i < count; i += kThreads) keys[i] = 0;
    sort(keys, count);
    for (int i = threadIdx.x; i < k; i += kThreads) put(i, keys[i]);
    return;
  }
  unsigned long long last = ~0ull;
  for (int place = 0; place < k; ++place) {
    last = largest_below(row, n, last, keys);
    if (threadIdx.x == 0) put(place, last);
    __syncthreads();
  }
}

}  // namespace

cudaError_t top(const Matrix& x, std::int64_t k, float* values, std::int32_t* ids, cudaStream_t stream) {
  return launch_chained(top_kernel, static_cast<unsigned>(x.rows), kThreads, 0, stream, x,
                        static_cast<int>(k), values, ids);
}

}  // namespace inkling::cuda
