// What the launchers share.
#pragma once

#include <cstdint>

#include "attention/cuda/launch.h"

namespace inkling::cuda {

/// Whether every row of every head starts at a multiple of 16 bytes and D fills whole 16-byte pieces.
inline bool is_wide(const HeadRows& rows, std::int32_t dim, std::size_t size) {
  const auto whole = [&](std::int64_t elements) {
    return elements * static_cast<std::int64_t>(size) % 16 == 0;
  };
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && whole(rows.row) && whole(rows.head) &&
         whole(dim);
}
inline bool is_wide(const ForwardArgs& a) {
  const std::size_t size = dtype_size(a.dtype);
  if (!is_wide(a.q, a.dim, size)) return false;
  if (a.pages.table == nullptr) return is_wide(a.k, a.dim, size) && is_wide(a.v, a.dim, size);
  return a.pages.k_offset % 16 == 0 && a.pages.v_offset % 16 == 0 &&
         is_wide({nullptr, a.pages.token, a.pages.head}, a.dim, size);
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
