#include "model/cuda/fused_layers.h"
#include "model/cuda/fused_products.h"

namespace inkling {

std::string_view fused_layers_refusal_on_cuda(ExecContext&, const FusedLayersArgs&) {
  return "this build has no CUDA kernels";
}

void fused_layers_on_cuda(ExecContext& context, const FusedLayersArgs&) {
  throw Error(Code::device,
              "fused_layers: expected a build with CUDA kernels, got " + context.backend().description());
}

std::string_view fused_products_refusal_on_cuda(ExecContext&, const Model&, std::int64_t) {
  return "this build has no CUDA kernels";
}

void fused_products_on_cuda(ExecContext& context, const FusedProductsArgs&) {
  throw Error(Code::device,
              "fused_products: expected a build with CUDA kernels, got " + context.backend().description());
}

}  // namespace inkling
