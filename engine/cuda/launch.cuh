// How kernels are launched: with the shared memory that they want, and for the type that the data has.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstddef>

#include "engine/dtype.h"

namespace inkling::cuda {

/// Calls body(T{}) with the device type of a float dtype.
template <class Body>
cudaError_t with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::bf16:
      return body(__nv_bfloat16{});
    case DType::f16:
      return body(__half{});
    default:
      return body(float{});
  }
}

/// Raises the kernel's shared memory to `bytes` and launches it.
template <class Kernel, class... Args>
cudaError_t launch(Kernel* kernel, dim3 grid, int threads, std::size_t bytes, cudaStream_t stream,
                   const Args&... args) {
  if (grid.x == 0) return cudaSuccess;
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
    // Without this the driver may keep L1 large and leave room for one block where two would fit.
    const cudaError_t carved =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (carved != cudaSuccess) return carved;
  }
  kernel<<<grid, threads, bytes, stream>>>(args...);
  return cudaGetLastError();
}

}  // namespace inkling::cuda
