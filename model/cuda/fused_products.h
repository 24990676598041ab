// What model/ asks of a GPU; no CUDA type. A build without CUDA has no_cuda.cpp.
#pragma once

#include "model/fused_products.h"

namespace inkling {

std::string_view fused_products_refusal_on_cuda(ExecContext& context, const Model& model, std::int64_t rows);
void fused_products_on_cuda(ExecContext& context, const FusedProductsArgs& args);

}  // namespace inkling
