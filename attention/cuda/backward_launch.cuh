// Launches of the backward kernels for one element type; each type is a source of its own, to compile side by
// side.
#pragma once

#include "attention/cuda/backward.cuh"
#include "attention/cuda/launch.cuh"

namespace inkling::cuda {

/// The Hopper kernels (backward_hopper.cu).
cudaError_t backward_hopper(const BackwardArgs& a, const DeviceTraits& traits, cudaStream_t stream);

template <class Out, class Grad>
cudaError_t run_delta(const BackwardArgs& a, cudaStream_t stream) {
  const std::int64_t rows = static_cast<std::int64_t>(a.forward.q_rows) * a.forward.heads;
  const bool wide =
      is_wide(a.forward.out, a.forward.dim, sizeof(Out)) && is_wide(a.dout, a.forward.dim, sizeof(Grad));
  return launch(delta_kernel<Out, Grad>, dim3(static_cast<unsigned int>((rows + 31) / 32)), 256, 0, stream, a,
                wide);
}

template <class T, int kDim, bool kExtras>
cudaError_t run_backward(const BackwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  using Shape = BackwardShape<T, kDim>;
  const ForwardArgs& f = a.forward;
  const int stages = Shape::bytes(2) <= traits.shared_per_block ? 2 : 1;
  const bool wide = is_wide(f) && is_wide(a.dout, f.dim, sizeof(T));
  const cudaError_t error = launch(backward_queries_kernel<T, kDim, kExtras>, dim3(a.query_tile_count),
                                   Shape::kThreads, Shape::bytes(stages), stream, a, stages, wide);
  if (error != cudaSuccess) return error;
  return launch(backward_keys_kernel<T, kDim, kExtras>, dim3(a.key_tile_count, kDim / Shape::kColumns),
                Shape::kThreads, Shape::bytes(stages), stream, a, stages, wide);
}

template <class T, int kDim>
cudaError_t run_backward(const BackwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (!a.forward.mask.extras() && a.forward.dropout.threshold == 0 && a.dbias == nullptr) {
      return run_backward<T, kDim, false>(a, traits, stream);
    }
  }
  return run_backward<T, kDim, true>(a, traits, stream);
}

/// backward() for elements of type T: q, k, v and dout in T.
template <class T>
cudaError_t backward_of(const BackwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  if (backward_hopper_refusal(a, traits).empty()) return backward_hopper(a, traits, stream);
  const cudaError_t error =
      a.forward.out_dtype == DType::f32 ? run_delta<float, T>(a, stream) : run_delta<T, T>(a, stream);
  if (error != cudaSuccess) return error;
  if (a.forward.dim <= 64) return run_backward<T, 64>(a, traits, stream);
  if (a.forward.dim <= 128) return run_backward<T, 128>(a, traits, stream);
  return run_backward<T, 256>(a, traits, stream);
}

}  // namespace inkling::cuda
