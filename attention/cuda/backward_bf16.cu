#include "attention/cuda/backward_launch.cuh"

namespace inkling::cuda {
template cudaError_t backward_of<__nv_bfloat16>(const BackwardArgs&, const DeviceTraits&, cudaStream_t);
}
