#include "model/fused_layers.h"

#include "model/cuda/fused_layers.h"

namespace inkling {

std::string_view fused_layers_refusal(ExecContext& context, const FusedLayersArgs& args) {
  if (context.device() != Device::cuda) return "the CPU runs op by op";
  return fused_layers_refusal_on_cuda(context, args);
}

void fused_layers(ExecContext& context, const FusedLayersArgs& args) {
  fused_layers_on_cuda(context, args);
}

}  // namespace inkling
