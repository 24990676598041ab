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

/// Raises the kernel's shared memory to `bytes`.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, std::size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  const auto* const function = reinterpret_cast<const void*>(kernel);
  const cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  // Without this the driver may keep L1 large and leave room for one block where two would fit.
  return cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

/// Launches the kernel with `bytes` of shared memory.
template <class Kernel, class... Args>
cudaError_t launch(Kernel* kernel, dim3 grid, int threads, std::size_t bytes, cudaStream_t stream,
                   const Args&... args) {
  if (grid.x == 0) return cudaSuccess;
  if (const cudaError_t error = allow_shared(kernel, bytes); error != cudaSuccess) return error;
  kernel<<<grid, threads, bytes, stream>>>(args...);
  return cudaGetLastError();
}

/// Blocks, and how many of them along z are one cluster (compute capability 9.0).
struct Grid {
  dim3 blocks;
  unsigned cluster = 1;

  Grid(unsigned x) : blocks(x) {}
  Grid(dim3 all, unsigned along_z = 1) : blocks(all), cluster(along_z) {}
};

/// launch() for a kernel that calls start_next() and wait_for_inputs() (chain.cuh): it may start before the
/// one before it ends. Code for GPUs without such waits is launched as ever.
template <class Kernel, class... Args>
cudaError_t launch_chained(Kernel* kernel, const Grid& grid, int threads, std::size_t bytes,
                           cudaStream_t stream, const Args&... args) {
  if (grid.blocks.x == 0) return cudaSuccess;
  if (const cudaError_t error = allow_shared(kernel, bytes); error != cudaSuccess) return error;
  cudaFuncAttributes code{};
  if (const cudaError_t error = cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(kernel));
      error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {1, 1, grid.cluster};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = code.ptxVersion < 90 ? 0 : grid.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace inkling::cuda
