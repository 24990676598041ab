#include "attention/cuda/backward_launch.cuh"

namespace inkling::cuda {
template cudaError_t backward_of<float>(const BackwardArgs&, const DeviceTraits&, cudaStream_t);
}
