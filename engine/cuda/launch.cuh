// How kernels are launched: with the shared memory that they want, and for the type that the data has.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>

#include "engine/cuda/start.h"
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

/// Raises the kernel's shared memory to `bytes` beside what its code declares, on the current device, and
/// says whether that code can wait for the kernel before it. The driver is asked once per kernel, device and
/// thread: it takes longer than a launch.
template <class Kernel>
cudaError_t prepare(Kernel* kernel, std::size_t bytes, bool& waits) {
  constexpr std::size_t kUnasked = 48 * 1024;  // that a block may have, declared and asked for together
  struct Known {
    std::size_t bytes = 0;  // that it may ask for
    bool asked = false, waits = false;
  };
  thread_local std::map<std::pair<Kernel*, int>, Known> all;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  Known& known = all[{kernel, device}];
  const auto* const function = reinterpret_cast<const void*>(kernel);
  if (!known.asked) {
    cudaFuncAttributes code{};
    if (const cudaError_t error = cudaFuncGetAttributes(&code, function); error != cudaSuccess) return error;
    known.waits = code.ptxVersion >= 90;
    known.bytes = kUnasked - std::min(kUnasked, code.sharedSizeBytes);
    known.asked = true;
  }
  waits = known.waits;
  if (bytes <= known.bytes) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  known.bytes = bytes;
  // Without this the driver may keep L1 large and leave room for one block where two would fit.
  return cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

/// Blocks that take n, `per` of them each.
inline unsigned blocks_for(std::int64_t n, std::int64_t per) {
  return static_cast<unsigned>((n + per - 1) / per);
}

/// Launches the kernel with `bytes` of shared memory. The error is that of this launch, whatever failed
/// before.
template <class Kernel, class... Args>
cudaError_t launch(Kernel* kernel, dim3 grid, dim3 threads, std::size_t bytes, cudaStream_t stream,
                   const Args&... args) {
  if (grid.x == 0) return cudaSuccess;
  bool waits = false;
  if (const cudaError_t error = prepare(kernel, bytes, waits); error != cudaSuccess) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

/// Blocks, and how many of them along z are one cluster (compute capability 9.0).
struct Grid {
  dim3 blocks;
  unsigned cluster = 1;
  Start start = Start::early;

  Grid(unsigned x, Start when = Start::early) : blocks(x), start(when) {}
  Grid(dim3 all, Start when = Start::early) : blocks(all), start(when) {}
  Grid(dim3 all, unsigned along_z, Start when) : blocks(all), cluster(along_z), start(when) {}
};

/// launch() for a kernel that calls start_next() and wait_for_inputs() (chain.cuh): it may start before the
/// one before it ends. Code for GPUs without such waits is launched as ever.
template <class Kernel, class... Args>
cudaError_t launch_chained(Kernel* kernel, const Grid& grid, int threads, std::size_t bytes,
                           cudaStream_t stream, const Args&... args) {
  if (grid.blocks.x == 0) return cudaSuccess;
  bool waits = false;
  if (const cudaError_t error = prepare(kernel, bytes, waits); error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = grid.start == Start::early ? 1 : 0;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {1, 1, grid.cluster};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = !waits ? 0 : grid.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace inkling::cuda
