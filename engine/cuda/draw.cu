// Ids drawn on the device by the rule of engine/draw_rule.h: a block a draw, any mix of settings in a launch.
//
//   greedy            one reading of the row
//   top-k             the likeliest in order, then everything in shared memory
//   whole row         sums of masses of 32 runs of ids, then the run in which the point falls
//   top-p, whole row  before that the last key kept (row_select.cuh)
//
// Masses are integers, so that sums in any order are the CPU's, to the bit. A row of V logits is read once
// from L2 where it fits shared memory (V ≤ 51,800 on compute capability 9.0), up to four times elsewhere.
// Bound by one processor's share of L2 and by e^x, some 35 instructions a token. V = 50257 on an H200, 1 to
// 64 rows, µs a launch back to back: greedy 8, top-k 40 17, whole row 24, top-p of it 39 to 51 (README.md).
// Compiled without contraction to FMA. Oracle: engine/cpu/draw.h.
#include "engine/cuda/chain.cuh"
#include "engine/cuda/row_select.cuh"
#include "engine/draw_rule.h"

namespace inkling::cuda {
namespace {

/// The masses of a row's tokens.
struct Masses {
  float largest, scale;

  __device__ Weight operator()(float logit) const { return mass_of(logit, largest, scale); }
};

/// Buckets of logits by their distance from the largest, rising with it; −1: no mass.
struct ByDistance {
  Masses masses;
  float buckets_per_unit;

  __device__ ByDistance(const Masses& of, float smallest) : masses(of) {
    const float farthest = (of.largest - smallest) * of.scale;
    buckets_per_unit = kBuckets / fminf(fmaxf(farthest, 1e-3f), 32.0f);
  }
  __device__ int operator()(Key, float logit) const {
    const float distance = (masses.largest - logit) * masses.scale;
    if (!(distance < 32.0f)) return -1;
    return min(static_cast<int>(distance * buckets_per_unit), kBuckets - 1);
  }
};

/// A draw from the tokens with a key of at least `last` and a mass of at least `least`, by id; −1: there are
/// none.
__device__ int draw_by_id(const Row& row, const Masses& masses, const DrawSettings& draw, Key last,
                          RowScratch& s) {
  const Weight least = least_mass(draw.min_p);
  const auto mass_at = [&](int i) -> Weight {
    const float logit = row.logit(i);
    if (key_of(logit, i) < last) return 0;
    const Weight mass = masses(logit);
    return mass < least ? 0 : mass;
  };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int run = (row.n + kRowThreads - 1) / kRowThreads * 32;  // ids of a warp
  const int begin = min(warp * run, row.n), end = min(begin + run, row.n);
  Weight sum = 0;
#pragma unroll 8
  for (int i = begin + lane; i < end; i += 32) sum += mass_at(i);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  Weight total = 0;
  const Weight before = sum_before(lane == 0 ? sum : 0, total, s);
  if (total == 0) return -1;
  Weight point = drawn_point(draw, total);
  if (lane == 0 && before <= point && point < before + sum) {
    s.place = warp;
    s.before = before;
  }
  __syncthreads();
  point -= s.before;
  const int first = s.place * run;
  find_passing([&](int i) { return mass_at(first + i); }, min(run, row.n - first), point, s);
  return first + s.place;
}

/// A draw from the whole row.
__device__ int draw_any(const Row& row, const Extent& own, const DrawSettings& draw, RowScratch& s) {
  const int id = index_of(largest_of_block(own.largest, s));
  const Masses masses{row.logit(id), draw.scale};
  if (!(masses.largest > -INFINITY)) return 0;
  if (draw.scale == 0.0f) return id;
  Key last = 0;
  if (draw.top_p < 1.0 && masses.largest < INFINITY) {
    __syncthreads();
    const float smallest = over_block(
        own.smallest, [](float a, float b) { return fminf(a, b); }, reinterpret_cast<float*>(s.warp));
    last = key_at(
        row, ByDistance(masses, smallest), masses,
        [&](Weight total) { return mass_to_keep(draw.top_p, total) - 1; }, s);
  }
  const int drawn = draw_by_id(row, masses, draw, last, s);
  return drawn < 0 ? id : drawn;
}

/// A draw from the likeliest top_k, in their order.
__device__ int draw_by_order(const Row& row, const Extent& own, const DrawSettings& draw, RowScratch& s) {
  const Key* const keys = likeliest(row, own.largest, draw.top_k, s);
  const int id = index_of(keys[0]);
  const Masses masses{row.logit(id), draw.scale};
  if (!(masses.largest > -INFINITY)) return 0;
  const int i = threadIdx.x;
  Weight mass = i < draw.top_k ? masses(row.logit(index_of(keys[i]))) : 0;
  Weight total = 0;
  const Weight before = sum_before(mass, total, s);
  if (total == 0) return id;
  if (draw.top_p < 1.0 && before >= mass_to_keep(draw.top_p, total)) mass = 0;
  if (mass < least_mass(draw.min_p)) mass = 0;
  const Weight left_before = sum_before(mass, total, s);
  const Weight point = drawn_point(draw, total);
  if (left_before <= point && point < left_before + mass) s.place = i;
  __syncthreads();
  return index_of(keys[s.place]);
}

__global__ void __launch_bounds__(kRowThreads, 1)
    draw_kernel(const Matrix logits, const DrawSettings* settings, std::int32_t* ids, std::int32_t* host_ids,
                bool stages) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch s;
  __shared__ DrawSettings draw;  // not in registers, which the row's pieces want
  start_next();
  wait_for_inputs();
  if (threadIdx.x == 0) draw = settings[blockIdx.x];
  __syncthreads();
  Row row = row_at(logits, draw.row, draw.forbidden);
  const Extent own = read_once(row, stages ? reinterpret_cast<float*>(staged) : nullptr);
  const bool by_order = draw.top_k > 0 && draw.scale > 0.0f;
  const int id = by_order ? draw_by_order(row, own, draw, s) : draw_any(row, own, draw, s);
  if (threadIdx.x != 0) return;
  ids[blockIdx.x] = id;
  if (host_ids != nullptr) host_ids[blockIdx.x] = id;
}

}  // namespace

cudaError_t draw(const Matrix& logits, const DrawSettings* settings, std::int64_t count, std::int32_t* ids,
                 std::int32_t* host_ids, cudaStream_t stream) {
  const std::size_t bytes = staged_bytes(logits.columns);
  return launch_chained(draw_kernel, static_cast<unsigned>(count), kRowThreads, bytes, stream, logits,
                        settings, ids, host_ids, bytes != 0);
}

}  // namespace inkling::cuda
