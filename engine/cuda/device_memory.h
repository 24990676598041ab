// DeviceMemory: memory of one GPU, taken and given back in the order of one stream. Seen by */cuda/ alone.
//
// It comes from a pool of its own (CUDA's stream-ordered allocator), which keeps what is given back until the
// end: an arena that grows waits for nothing, and the driver is asked for memory rarely. Where there are no
// pools it comes from cudaMalloc(), and giving back waits for the GPU. An address stays what it is from
// allocate() to the Buffer's end, so recorded ops may hold it. Not thread-safe.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "engine/tensor.h"

namespace inkling::cuda {

class DeviceMemory {
 public:
  /// `ordinal` is the current GPU, `stream` one of its streams, which outlives this.
  DeviceMemory(int ordinal, cudaStream_t stream);
  /// Every Buffer has been given back.
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Aligned to 256; for ops of the stream begun from now on. Throws Error{out_of_memory} with the figures.
  Buffer allocate(std::size_t bytes);
  /// Why there is no pool; "" where there is one.
  const std::string& no_pool_reason() const noexcept { return no_pool_reason_; }

 private:
  static void give_back(void* owner, std::byte* data) noexcept;
  cudaError_t take(void** data, std::size_t bytes) noexcept;
  [[noreturn]] void refuse(std::size_t bytes) const;

  cudaStream_t stream_;
  cudaMemPool_t pool_ = nullptr;  // null: cudaMalloc()
  std::string no_pool_reason_;
};

}  // namespace inkling::cuda
