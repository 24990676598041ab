#include "model/fused_products.h"

#include "model/cuda/fused_products.h"

namespace inkling {

std::string_view fused_products_refusal(ExecContext& context, const Model& model, std::int64_t rows) {
  if (context.device() != Device::cuda) return "the CPU runs op by op";
  return fused_products_refusal_on_cuda(context, model, rows);
}

void fused_products(ExecContext& context, const FusedProductsArgs& args) {
  fused_products_on_cuda(context, args);
}

}  // namespace inkling
