// The choice of element type for backward(); the instances are in backward_*.cu.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/cuda/launch.h"

namespace inkling::cuda {

template <class T>
cudaError_t backward_of(const BackwardArgs& args, const DeviceTraits& traits, cudaStream_t stream);
extern template cudaError_t backward_of<__nv_bfloat16>(const BackwardArgs&, const DeviceTraits&,
                                                       cudaStream_t);
extern template cudaError_t backward_of<__half>(const BackwardArgs&, const DeviceTraits&, cudaStream_t);
extern template cudaError_t backward_of<float>(const BackwardArgs&, const DeviceTraits&, cudaStream_t);

cudaError_t backward(const BackwardArgs& args, const DeviceTraits& traits, cudaStream_t stream) {
  switch (args.forward.dtype) {
    case DType::bf16:
      return backward_of<__nv_bfloat16>(args, traits, stream);
    case DType::f16:
      return backward_of<__half>(args, traits, stream);
    default:
      return backward_of<float>(args, traits, stream);
  }
}

}  // namespace inkling::cuda
