// The mask of training_ops.h's dropout, four columns at a time.
#pragma once

#include "engine/cuda/training_kernels.h"
#include "engine/philox.h"

namespace inkling::cuda {

/// Of one row: which counters its elements draw from.
class RowDropout {
 public:
  /// Unless it `draws`, not to be called.
  __device__ RowDropout(const Dropout& rule, std::int64_t row, bool draws = true) : rule_(rule) {
    if (!draws || rule.threshold == 0) return;
    int low = 0, high = rule.sequences;  // the sequence of the row: the last that begins at or before it
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (rule.cu_seqlens[middle] <= row ? low : high) = middle;
    }
    row_ = static_cast<std::uint32_t>(row - rule.cu_seqlens[low]);
    stream_ = (std::uint32_t{1} << 31) + static_cast<std::uint32_t>(low);
  }
  /// Columns [c, c + 4), c a multiple of four.
  __device__ void operator()(std::int64_t c, float (&v)[4]) const {
    if (rule_.threshold == 0) return;
    const PhiloxWords words =
        philox({static_cast<std::uint32_t>(c / 4), row_, stream_, rule_.offset}, rule_.seed);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      v[e] = words[static_cast<std::size_t>(e)] >= rule_.threshold ? v[e] * rule_.scale : 0.0f;
    }
  }

 private:
  const Dropout& rule_;
  std::uint32_t row_ = 0, stream_ = 0;
};

}  // namespace inkling::cuda
