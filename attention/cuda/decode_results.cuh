// Where the kernels of decode leave results, and partial ones meanwhile.
#pragma once

#include "attention/cuda/decode_chunk.cuh"
#include "attention/cuda/decode_plan.h"

namespace inkling::cuda {

__device__ inline void write_lse(const ForwardArgs& a, const DecodeUnit& unit, int row, float top,
                                 float sum) {
  if (a.lse == nullptr) return;
  a.lse[unit.head(row) * a.lse_head + (unit.q_begin + unit.query(row)) * a.lse_row] =
      sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
}

/// The partial results of a row in device memory, kAtOnce of them asked for at a time by each half of the
/// warp.
template <int kAtOnce>
struct Partials {
  static constexpr int kTogether = kAtOnce;
  const float2* stats;
  const float* values;
  int stride;  // of values, between chunks
  float4 asked[kTogether];

  __device__ float2 stat(int chunk) const { return __ldcg(stats + chunk); }
  __device__ void ask(int j, int chunk, int d) {
    asked[j] =
        __ldcg(reinterpret_cast<const float4*>(values + static_cast<std::int64_t>(chunk) * stride + d));
  }
  __device__ void wait() const {}
  __device__ float4 value(int j) const { return asked[j]; }
};

}  // namespace inkling::cuda
