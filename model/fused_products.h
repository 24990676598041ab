// fused_products: all products between two attentions as one op, where the device has such a form.
#pragma once

#include <string_view>

#include "engine/exec_context.h"
#include "model/model.h"

namespace inkling {

struct FusedProductsArgs {
  const Model& model;
  int layer;            ///< whose attention is over; −1: the first's is still to come
  TensorView attended;  ///< (N,C) what it gave, in the activations' type
  TensorView x;         ///< (N,C) f32: the residual stream
  TensorView out;       ///< (N,C) f32, written: the stream behind the layer; may be x
  TensorView qkv;       ///< (N,3C) of the activations' type, written but behind the last layer
};

/// "" when fused_products() takes steps of `rows` tokens of the model, all of them wanted, else why not.
/// Allocates nothing.
std::string_view fused_products_refusal(ExecContext& context, const Model& model, std::int64_t rows);

/// Attention's projection, the MLP, and the next layer's queries, keys and values; in a step first with layer
/// −1, then with each layer in turn. The bits of the same products by linear(). Takes what is not refused.
/// Throws Error{device}.
void fused_products(ExecContext& context, const FusedProductsArgs& args);

}  // namespace inkling
