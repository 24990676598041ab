// Linear layers by wgmma (compute capability 9.0), 16-bit weights. Same bits as the kernels of linear.cu:
// wgmma and mma.sync add a step of 16 products alike, which tests/engine/cuda.cpp holds.
#pragma once

#include "engine/cuda/kernels.h"

namespace inkling::cuda {

bool takes_hopper(const Linear& args);
cudaError_t linear_hopper(const Linear& args, cudaStream_t stream);

}  // namespace inkling::cuda
