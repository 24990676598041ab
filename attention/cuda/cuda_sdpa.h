// sdpa() and its gradient on a GPU; no CUDA type. A build without CUDA has no_cuda.cpp.
#pragma once

#include "attention/sdpa_problem.h"

namespace inkling {

/// sdpa() by `backend` on the GPU of `context`; arguments are checked and supported.
/// Tensors lie on the device; offsets and documents on the host, from where they go there once for all calls
/// that have the same. flash is the Hopper kernel where that can run, else the plain one.
void sdpa_on_cuda(ExecContext& context, const SdpaProblem& problem, SdpaBackend backend);
/// sdpa_backward() likewise, by flash or math.
void sdpa_backward_on_cuda(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args,
                           SdpaBackend backend);
/// sdpa_reads_drawn() on a GPU.
bool reads_drawn_on_cuda(ExecContext& context, DType dtype, std::int64_t dim);

}  // namespace inkling
