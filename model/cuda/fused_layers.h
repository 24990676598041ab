// What model/ asks of a GPU; no CUDA type. A build without CUDA has no_cuda.cpp.
#pragma once

#include "model/fused_layers.h"

namespace inkling {

std::string_view fused_layers_refusal_on_cuda(ExecContext& context, const FusedLayersArgs& args);
void fused_layers_on_cuda(ExecContext& context, const FusedLayersArgs& args);

}  // namespace inkling
