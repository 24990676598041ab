// Instances of the mma.sync forward kernel and the choice among them.
#include "attention/cuda/forward_mma.cuh"

#include "attention/cuda/launch.cuh"
#include "engine/cuda/cuda.h"

namespace inkling::cuda {
namespace {

template <class T, int kDim, bool kExtras>
cudaError_t run(const ForwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  using Shape = ForwardShape<T, kDim>;
  const int stages = Shape::bytes(2) <= traits.shared_per_block / (kDim <= 64 ? 2 : 1) ? 2 : 1;
  return launch_chained(forward_mma_kernel<T, kDim, kExtras>, dim3(a.tile_count), Shape::kThreads,
                        Shape::bytes(stages), stream, a, stages, is_wide(a));
}

template <class T, int kDim>
cudaError_t run(const ForwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    if (!a.mask.extras() && a.dropout.threshold == 0) return run<T, kDim, false>(a, traits, stream);
  }
  return run<T, kDim, true>(a, traits, stream);
}

template <class T>
cudaError_t run(const ForwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  if (a.dim <= 64) return run<T, 64>(a, traits, stream);
  if (a.dim <= 128) return run<T, 128>(a, traits, stream);
  return run<T, 256>(a, traits, stream);
}

}  // namespace

cudaError_t read_traits(int ordinal, DeviceTraits& traits) {
  traits.ordinal = ordinal;
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, ordinal);
  };
  int shared = 0;
  traits.no_hopper = cuda_hopper_refusal(ordinal);
  cudaError_t error = read(traits.processors, cudaDevAttrMultiProcessorCount);
  if (error == cudaSuccess) error = read(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  traits.shared_per_block = static_cast<std::size_t>(shared);
  return error;
}

cudaError_t forward_mma(const ForwardArgs& args, const DeviceTraits& traits, cudaStream_t stream) {
  return with_type(args.dtype, [&](auto type) { return run<decltype(type)>(args, traits, stream); });
}

}  // namespace inkling::cuda
