// Linear layers of few rows and very many columns, a head over a vocabulary, by wgmma (compute capability
// 9.0), 16-bit weights. Same bits as the kernels of linear.cu.
#pragma once

#include "engine/cuda/kernels.h"

namespace inkling::cuda {

/// Whether linear_wide() takes these arguments: at most 64 rows and at least 8192 columns, a product and
/// nothing else, f32 out, and x fits the shared memory of the current device beside a ring for the weight.
bool takes_wide(const Linear& args);
cudaError_t linear_wide(const Linear& args, cudaStream_t stream);

}  // namespace inkling::cuda
