// What a build without CUDA kernels says when it is asked for them.
#include "engine/exec_context.h"

namespace inkling {

std::string cuda_unavailable_reason() {
  return "this build has no CUDA kernels";
}

}  // namespace inkling
