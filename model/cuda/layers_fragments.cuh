// Fragments of a run: one step of k of a tile's weights, or of x, and their product.
#pragma once

#include "model/cuda/layers_plan.cuh"

namespace inkling::cuda {

/// A step of 64 as matrix instructions want it: rows of shared memory `stride` apart, eight of the weights;
/// of x those there are, and the last again for the rest.
template <class T>
struct StepFragment {
  static constexpr int kStep = FewTile<T, kTileColumns>::kDepth;
  std::uint32_t r[kStep / 32][4];

  __device__ void read(const T* rows, int last, int stride, int k) {
    const int lane = threadIdx.x % kWarp;
    const T* const from = rows + min(lane % 8, last) * stride + lane / 8 * 8 + k;
#pragma unroll
    for (int i = 0; i < kStep / 32; ++i) ldmatrix_x4(r[i], shared_address(from + 32 * i));
  }
};

/// c += the i-th sixteen of x · w; rows 8 … 15 of the instruction are zeros.
template <class T>
__device__ inline void multiply(float (&c)[4], const StepFragment<T>& x, const StepFragment<T>& w, int i) {
  const int at = i % 2 * 2;
  Mma<T>::multiply(c, {{x.r[i / 2][at], 0, x.r[i / 2][at + 1], 0}}, {{w.r[i / 2][at], w.r[i / 2][at + 1]}});
}

}  // namespace inkling::cuda
