// One row of logits by one block: its likeliest tokens in order, and the token at which a sum over them, from
// the likeliest down, passes a point. No row is sorted. Longer than a header: the stages share one layout of
// shared memory and are read in order.
//
// The row is read once; where it fits beside the rest it stays in shared memory. The k likeliest: the k-th of
// the largest of each thread's share is a bound that at least k elements reach, and hardly more do; those
// that reach it are listed and put in order. The token at a point: weights in 1024 buckets of the row's
// range, then of the chosen bucket's, until what it holds fits the list. Weights are integers, so that
// additions in any order give one sum.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/cuda/kernels.h"
#include "engine/cuda/launch.cuh"

namespace inkling::cuda {

using Key = unsigned long long;
using Weight = unsigned long long;

constexpr int kRowThreads = 1024;  // of a block
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kList = 2048;  // keys
constexpr int kBucketBits = 10, kBuckets = 1 << kBucketBits;
static_assert(kBuckets == kRowThreads && kMostTop <= kRowThreads);  // one a thread

/// What a block shares, beside the row.
struct RowScratch {
  union {
    Key keys[kList];
    struct {
      unsigned low[kBuckets], high[kBuckets];  // halves of sums, with native atomic additions
    } sums;
  };
  Key in_order[kMostTop];
  Weight warp[kRowWarps];
  Weight before;  // a sum up to `place`
  int place, found;
};

/// Larger is earlier: the value, then the smaller index. Never zero.
__device__ inline Key key_of(float value, unsigned index) {
  unsigned bits = __float_as_uint(value == 0.0f ? 0.0f : value);  // −0 is 0
  bits = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(bits) << 32 | (0xffffffffu - index);
}
__device__ inline int index_of(Key key) {
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(key));
}

/// A row as it is seen by those who choose from it.
struct Row {
  const float* data;
  int n;
  int forbidden;  // counts as −inf; or −1
  bool in_fours;  // rows begin with a whole four

  __device__ float logit(int i) const { return seen(i, data[i]); }
  /// NaN counts as −inf: it is what fmaxf() does not return.
  __device__ float seen(int i, float value) const {
    return i == forbidden ? -INFINITY : fmaxf(value, -INFINITY);
  }
  /// body(i, logit) for a thread's share, which is the same in every call: five pieces of 16 bytes are asked
  /// for at once.
  template <class Body>
  __device__ void each(const Body& body) const {
    constexpr int kAhead = 5;
    const int fours = in_fours ? n / 4 : 0;
    for (int first = static_cast<int>(threadIdx.x); first < fours; first += kAhead * kRowThreads) {
      float4 four[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = first + a * kRowThreads;
        if (at < fours) four[a] = reinterpret_cast<const float4*>(data)[at];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = first + a * kRowThreads, i = 4 * at;
        if (at >= fours) continue;
        body(i, seen(i, four[a].x));
        body(i + 1, seen(i + 1, four[a].y));
        body(i + 2, seen(i + 2, four[a].z));
        body(i + 3, seen(i + 3, four[a].w));
      }
    }
    for (int i = 4 * fours + static_cast<int>(threadIdx.x); i < n; i += kRowThreads) body(i, logit(i));
  }
};

/// Row `index` of x.
__device__ inline Row row_at(const Matrix& x, std::int64_t index, int forbidden = -1) {
  const float* const data = static_cast<const float*>(x.data) + index * x.stride;
  return {data, static_cast<int>(x.columns), forbidden, reinterpret_cast<std::uintptr_t>(data) % 16 == 0};
}

/// The first reading of a row: of the thread's share the largest key and the smallest logit.
struct Extent {
  Key largest = 0;
  float smallest = INFINITY;
};
/// Leaves the row in `staged`, unless that is null, and lets it be read there.
__device__ inline Extent read_once(Row& row, float* staged) {
  Extent own;
  row.each([&](int i, float logit) {
    own.largest = max(own.largest, key_of(logit, i));
    own.smallest = fminf(own.smallest, logit);
    if (staged != nullptr) staged[i] = logit;
  });
  if (staged == nullptr) return own;
  row.data = staged;
  row.forbidden = -1;
  __syncthreads();
  return own;
}

/// The bytes of shared memory that staging rows of n takes, where the current device has them beside
/// RowScratch; else 0.
inline std::size_t staged_bytes(std::int64_t n) {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return 0;
  }
  const auto bytes = static_cast<std::size_t>(n) * sizeof(float);
  constexpr std::size_t kBeside = sizeof(RowScratch) + 256;  // and what a kernel has of its own
  return bytes + kBeside <= static_cast<std::size_t>(most) ? bytes : 0;
}

/// `one(a, b)` over the values of all threads of the block. `scratch`: a place for each warp.
template <class T, class One>
__device__ T over_block(T value, const One& one, T* scratch) {
  for (int step = 16; step > 0; step /= 2) value = one(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[threadIdx.x % 32];
  for (int step = 16; step > 0; step /= 2) value = one(value, __shfl_xor_sync(~0u, value, step));
  return value;
}
__device__ inline Key largest_of_block(Key key, RowScratch& s) {
  return over_block(
      key, [](Key a, Key b) { return max(a, b); }, s.warp);
}

/// The sum of `weight` over the threads of the block before this one; `total` over all.
__device__ inline Weight sum_before(Weight weight, Weight& total, RowScratch& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Weight sum = weight;
  for (int step = 1; step < 32; step *= 2) {
    const Weight other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  __syncthreads();
  if (lane == 31) s.warp[warp] = sum;
  __syncthreads();
  Weight of_warps = s.warp[lane];
  for (int step = 1; step < 32; step *= 2) {
    const Weight other = __shfl_up_sync(~0u, of_warps, step);
    if (lane >= step) of_warps += other;
  }
  total = __shfl_sync(~0u, of_warps, 31);
  const Weight warps_before = __shfl_sync(~0u, of_warps, (warp + 31) % 32);
  return sum - weight + (warp > 0 ? warps_before : 0);
}

/// The place among `weight(0)` … `weight(count − 1)` at which their sum passes `point`, below their total, in
/// s.place, and the sum before it in s.before. A thread takes neighbours.
template <class WeightAt>
__device__ void find_passing(const WeightAt& weight, int count, Weight point, RowScratch& s) {
  const int each = (count + kRowThreads - 1) / kRowThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * each, count), end = min(begin + each, count);
  Weight own = 0;
  for (int i = begin; i < end; ++i) own += weight(i);
  Weight total = 0;
  Weight sum = sum_before(own, total, s);
  if (sum <= point && point < sum + own) {
    int i = begin;
    for (Weight next = weight(i); sum + next <= point; next = weight(++i)) sum += next;
    s.place = i;
    s.before = sum;
  }
  __syncthreads();
}

/// Puts the first `found` keys in falling order: few by counting those before each, more by a bitonic sort.
/// What lies behind them is lost. Returns where they are.
__device__ inline const Key* sorted(int found, RowScratch& s) {
  if (found <= 256) {
    const int lane = threadIdx.x % 32;
    for (int i = static_cast<int>(threadIdx.x) / 32; i < found; i += kRowWarps) {
      const Key key = s.keys[i];
      int place = 0;
      for (int j = 0; j < found; j += 32) {
        place += __popc(__ballot_sync(~0u, j + lane < found && s.keys[j + lane] > key));
      }
      if (lane == 0) s.in_order[place] = key;
    }
    __syncthreads();
    return s.in_order;
  }
  int count = 512;
  while (count < found) count *= 2;
  for (int i = found + static_cast<int>(threadIdx.x); i < count; i += kRowThreads) s.keys[i] = 0;
  for (int size = 2; size <= count; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < count; i += kRowThreads) {
        const int other = i ^ step;
        if (other <= i) continue;
        const bool falling = (i & size) == 0;
        if ((s.keys[i] < s.keys[other]) == falling) {
          const Key kept = s.keys[i];
          s.keys[i] = s.keys[other];
          s.keys[other] = kept;
        }
      }
    }
  }
  __syncthreads();
  return s.keys;
}

struct KeyRange {
  Key highest, lowest;
};

/// Buckets of the keys of a range, rising from the highest; −1: outside.
struct ByKey {
  KeyRange range;
  int shift;

  __device__ int operator()(Key key, float) const {
    return key > range.highest || key < range.lowest ? -1 : static_cast<int>((range.highest - key) >> shift);
  }
};

__device__ inline ByKey by_key(const KeyRange& range) {
  const int bits = 64 - __clzll(static_cast<long long>(range.highest - range.lowest));
  return {range, max(bits - kBucketBits, 0)};
}

/// Sums `weight(logit)` by bucket and finds the one in which the sum over buckets passes point_of(total), in
/// s.place and s.before. Returns the point.
template <class Bucket, class WeightOf, class Point>
__device__ Weight find_bucket(const Row& row, const Bucket& bucket, const WeightOf& weight,
                              const Point& point_of, RowScratch& s) {
  __syncthreads();
  s.sums.low[threadIdx.x] = s.sums.high[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < row.n; i += kRowThreads) {
    const float logit = row.logit(i);
    const int b = bucket(key_of(logit, i), logit);
    if (b < 0) continue;
    const Weight own = weight(logit);
    const auto low = static_cast<unsigned>(own);
    const unsigned carry = atomicAdd(&s.sums.low[b], low) > ~low ? 1 : 0;
    const unsigned high = static_cast<unsigned>(own >> 32) + carry;
    if (high != 0) atomicAdd(&s.sums.high[b], high);
  }
  __syncthreads();
  const Weight own = Weight{s.sums.high[threadIdx.x]} << 32 | s.sums.low[threadIdx.x];
  Weight total = 0;
  const Weight before = sum_before(own, total, s);
  const Weight point = point_of(total);
  if (before <= point && point < before + own) {
    s.place = static_cast<int>(threadIdx.x);
    s.before = before;
  }
  __syncthreads();
  return point;
}

/// Lists the keys of a bucket, as many as there is room for, with their number in s.found. Returns their
/// range where there are more.
template <class Bucket>
__device__ KeyRange list_bucket(const Row& row, const Bucket& bucket, int chosen, RowScratch& s) {
  __syncthreads();
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  KeyRange range{0, ~Key{0}};
#pragma unroll 8
  for (int i = threadIdx.x; i < row.n; i += kRowThreads) {
    const float logit = row.logit(i);
    const Key key = key_of(logit, i);
    if (bucket(key, logit) != chosen) continue;
    const int place = atomicAdd(&s.found, 1);
    if (place < kList) s.keys[place] = key;
    range = {max(range.highest, key), min(range.lowest, key)};
  }
  __syncthreads();
  if (s.found > kList) {
    range.highest = largest_of_block(range.highest, s);
    range.lowest = ~largest_of_block(~range.lowest, s);
  }
  return range;
}

/// The key at which the sum of `weight(logit)` from the highest key down passes point_of(total). Keys with
/// bucket −1 weigh nothing; higher keys have lower buckets.
template <class Bucket, class WeightOf, class Point>
__device__ Key key_at(const Row& row, const Bucket& bucket, const WeightOf& weight, const Point& point_of,
                      RowScratch& s) {
  Weight point = find_bucket(row, bucket, weight, point_of, s);
  point -= s.before;
  KeyRange range = list_bucket(row, bucket, s.place, s);
  while (s.found > kList) {
    const ByKey narrower = by_key(range);
    find_bucket(
        row, narrower, weight, [point](Weight) { return point; }, s);
    point -= s.before;
    range = list_bucket(row, narrower, s.place, s);
  }
  const int found = s.found;
  const Key* const keys = sorted(found, s);
  find_passing([&](int i) { return weight(row.logit(index_of(keys[i]))); }, found, point, s);
  return keys[s.place];
}

/// The k largest keys of a row, the largest first. 1 ≤ k ≤ min(n, kMostTop); `own` of read_once().
__device__ inline const Key* likeliest(const Row& row, Key own, int k, RowScratch& s) {
  // The bound, bit by bit from the highest, until hardly more than k threads reach it.
  const auto value = static_cast<unsigned>(own >> 32);
  unsigned bound = 0;
  for (unsigned bit = 1u << 31; bit != 0; bit >>= 1) {
    const int reach = __syncthreads_count(value >= (bound | bit));
    if (reach < k) continue;
    bound |= bit;
    if (reach <= k + 32) break;
  }
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  const auto list = [&](Key least) {
    row.each([&](int i, float logit) {
      const Key key = key_of(logit, i);
      if (key < least) return;
      const int place = atomicAdd(&s.found, 1);
      if (place < kList) s.keys[place] = key;
    });
  };
  const Key least = Key{bound} << 32;
  if (own >= least) list(least);
  __syncthreads();
  if (s.found > kList) {  // many equals, or nearly every share reaches the bound: the k-th key itself
    const ByKey all = by_key({largest_of_block(own, s), least});
    const Key last = key_at(
        row, all, [](float) { return Weight{1}; }, [k](Weight) { return Weight(k - 1); }, s);
    __syncthreads();
    if (threadIdx.x == 0) s.found = 0;
    __syncthreads();
    if (own >= last) list(last);
    __syncthreads();
  }
  return sorted(s.found, s);
}

}  // namespace inkling::cuda
