#include "model/cuda/fused_layers.h"

namespace inkling {

std::string_view fused_layers_refusal_on_cuda(ExecContext&, const FusedLayersArgs&) {
  return "this build has no CUDA kernels";
}

void fused_layers_on_cuda(ExecContext& context, const FusedLayersArgs&) {
  throw Error(Code::device,
              "fused_layers: expected a build with CUDA kernels, got " + context.backend().description());
}

}  // namespace inkling
