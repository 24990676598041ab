// What a build without CUDA kernels says when it is asked for them.
#include "engine/cuda/cuda.h"

namespace inkling {

std::string cuda_unavailable_reason(int) {
  return "this build has no CUDA kernels";
}

std::string_view cuda_hopper_refusal(int) noexcept {
  return "this build has no CUDA kernels";
}

std::string cuda_versions() {
  return {};
}

std::vector<CudaDevice> cuda_devices() {
  return {};
}

std::unique_ptr<Backend> make_cuda_backend(int ordinal, Isa) {
  throw Error(Code::device, "device: " + cuda_unavailable_reason(ordinal));
}

}  // namespace inkling
