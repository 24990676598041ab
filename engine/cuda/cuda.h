// CUDA as the rest of the engine sees it: no CUDA type. A build without the toolkit has no_cuda.cpp in the
// place of all the rest of this folder.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/backend.h"

namespace inkling {

/// One GPU, for reports.
struct CudaDevice {
  int ordinal = 0;
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  int processors = 0;
  std::size_t memory = 0, free_memory = 0;  ///< bytes
};

/// "" when this build, this machine's driver and GPU `ordinal` can run the CUDA backend, else why not.
std::string cuda_unavailable_reason(int ordinal = 0);
/// "" where the kernels of wgmma and tensor copies run on GPU `ordinal`, which can run the backend, else why
/// not; those of mma.sync then take their place.
std::string_view cuda_hopper_refusal(int ordinal = 0) noexcept;
/// "driver 13.0, runtime 13.0, cuBLASLt 13.1.0", or why there is no cuBLASLt; "" where there is no driver.
std::string cuda_versions();
/// Every GPU that the driver shows, usable or not.
std::vector<CudaDevice> cuda_devices();
/// Throws Error{device} with cuda_unavailable_reason(). Packed matrices are marked with the host's `isa`,
/// which ties them to their context.
std::unique_ptr<Backend> make_cuda_backend(int ordinal, Isa isa);

}  // namespace inkling
