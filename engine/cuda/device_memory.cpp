#include "engine/cuda/device_memory.h"

#include <cstdint>
#include <string>

namespace inkling::cuda {

DeviceMemory::DeviceMemory(int ordinal, cudaStream_t stream) : stream_(stream) {
  int supported = 0;
  if (cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, ordinal) != cudaSuccess ||
      supported == 0) {
    cudaGetLastError();
    no_pool_reason_ = "the driver has no memory pools for this GPU";
    return;
  }
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location = {cudaMemLocationTypeDevice, ordinal};
  cudaError_t error = cudaMemPoolCreate(&pool_, &properties);
  std::uint64_t kept = UINT64_MAX;  // bytes that a wait for the stream does not return to the driver: all
  if (error == cudaSuccess) error = cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &kept);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgotten: it is reported here
  no_pool_reason_ = std::string("the driver makes no memory pool: ") + cudaGetErrorString(error);
  if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
  pool_ = nullptr;
}

DeviceMemory::~DeviceMemory() {
  if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
}

cudaError_t DeviceMemory::take(void** data, std::size_t bytes) noexcept {
  const cudaError_t error =
      pool_ == nullptr ? cudaMalloc(data, bytes) : cudaMallocFromPoolAsync(data, bytes, pool_, stream_);
  if (error != cudaSuccess) cudaGetLastError();  // forgotten: whoever asked reports it
  return error;
}

Buffer DeviceMemory::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  void* data = nullptr;
  cudaError_t error = take(&data, bytes);
  if (error != cudaSuccess && pool_ != nullptr) {
    // What the pool keeps in pieces that are too small may do as a whole.
    cudaStreamSynchronize(stream_);
    cudaMemPoolTrimTo(pool_, 0);
    error = take(&data, bytes);
  }
  if (error != cudaSuccess) refuse(bytes);
  return {static_cast<std::byte*>(data), bytes, give_back, this};
}

void DeviceMemory::refuse(std::size_t bytes) const {
  std::size_t left = 0, total = 0;
  cudaMemGetInfo(&left, &total);
  std::string text = "cuda: " + std::to_string(bytes) + " bytes were needed, " + std::to_string(left) +
                     " of " + std::to_string(total) + " are free";
  if (std::uint64_t used = 0;
      pool_ != nullptr &&
      cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &used) == cudaSuccess) {
    text += ", " + std::to_string(used) + " are in use here";
  }
  throw Error(Code::out_of_memory, text);
}

void DeviceMemory::give_back(void* owner, std::byte* data) noexcept {
  const auto* memory = static_cast<const DeviceMemory*>(owner);
  if (memory->pool_ == nullptr) {
    cudaFree(data);
  } else {
    cudaFreeAsync(data, memory->stream_);
  }
}

}  // namespace inkling::cuda
