// Linear layers with int8 or int4 weights: the bits of a bf16 matrix of what those stand for
// (quant_format.h).
#pragma once

#include "engine/cuda/kernels.h"
#include "engine/cuda/quant_format.h"

namespace inkling::cuda {

/// norms_inside() for these weights. What args.weight says here and below is the shape and bf16; its data is
/// not looked at.
bool norms_inside(const Linear& args, const QuantMatrix& weight);
/// Bytes for bf16 weights that linear_quantised() wants; 0: none.
std::size_t quantised_workspace(const Linear& args, const QuantMatrix& weight);
/// linear() with `weight` in the place of args.weight.
cudaError_t linear_quantised(const Linear& args, const QuantMatrix& weight, std::byte* workspace,
                             cudaStream_t stream);

}  // namespace inkling::cuda
