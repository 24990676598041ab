// The choice of element type for backward(); the instances are in backward_*.cu.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/launch.h"
#include "engine/cuda/launch.cuh"

namespace inkling::cuda {

template <class T>
cudaError_t backward_of(const BackwardArgs& args, const DeviceTraits& traits, cudaStream_t stream);
extern template cudaError_t backward_of<__nv_bfloat16>(const BackwardArgs&, const DeviceTraits&,
                                                       cudaStream_t);
extern template cudaError_t backward_of<__half>(const BackwardArgs&, const DeviceTraits&, cudaStream_t);
extern template cudaError_t backward_of<float>(const BackwardArgs&, const DeviceTraits&, cudaStream_t);

cudaError_t backward(const BackwardArgs& args, const DeviceTraits& traits, cudaStream_t stream) {
  return with_type(args.forward.dtype,
                   [&](auto type) { return backward_of<decltype(type)>(args, traits, stream); });
}

}  // namespace inkling::cuda
