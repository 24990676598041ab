// CUDA's error codes as Errors.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "engine/base/error.h"

namespace inkling::cuda {

/// Throws Error{out_of_memory} or Error{device}: "cuda: WHAT: reason".
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgotten: it is reported here, and not once more by a sound op after this one
  throw Error(error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::device,
              std::string("cuda: ") + what + ": " + cudaGetErrorString(error));
}

}  // namespace inkling::cuda
