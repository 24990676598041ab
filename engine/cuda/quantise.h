// Integer weights made, read back and looked up. As kernels.h: they enqueue, and neither allocate nor wait.
#pragma once

#include "engine/cuda/kernels.h"
#include "engine/cuda/quant_format.h"

namespace inkling::cuda {

/// Element (k, n) of `source`, in device memory, to row n of `out`, whose memory is written.
cudaError_t quantise(const MatrixSource& source, const QuantMatrix& out, cudaStream_t stream);

/// The weights as bf16, zeros behind K up to the stride of `out`, a multiple of sixteen; rows in pieces.
cudaError_t dequantise(const QuantMatrix& from, const Matrix& out, cudaStream_t stream);

/// embed() with a table of integers: of `args` all but the token's.
cudaError_t embed_quantised(const Embed& args, const QuantMatrix& token, cudaStream_t stream);

}  // namespace inkling::cuda
