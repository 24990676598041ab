// Linear layers with int8 or int4 weights by wgmma (compute capability 9.0). Same bits as linear_hopper()
// with a bf16 matrix of what the integers stand for.
#pragma once

#include "engine/cuda/kernels.h"
#include "engine/cuda/quant_format.h"

namespace inkling::cuda {

/// Whether integers are widened in the kernel here: what takes_hopper() takes, and rows few enough for it.
bool takes_integers(const Linear& args);
/// args.weight says the shape and bf16; its data is not looked at.
cudaError_t linear_quant_hopper(const Linear& args, const QuantMatrix& weight, cudaStream_t stream);

}  // namespace inkling::cuda
