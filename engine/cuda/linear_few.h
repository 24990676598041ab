// Linear layers for a decode step's few rows, with the norm inside. Same bits as the kernels of linear.cu.
#pragma once

#include "engine/cuda/kernels.h"

namespace inkling::cuda {

/// Whether linear_few() takes these arguments: at most 16 rows, and x with a few columns of the weight fits
/// the shared memory of the current device.
bool takes_few(const Linear& args);
cudaError_t linear_few(const Linear& args, cudaStream_t stream);

}  // namespace inkling::cuda
