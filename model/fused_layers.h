// fused_layers: all layers of a step of decoding as one op, where the device has such a form.
#pragma once

#include <string_view>

#include "engine/exec_context.h"
#include "model/model.h"
#include "model/packed_batch.h"

namespace inkling {

struct FusedLayersArgs {
  const Model& model;
  const PackedBatch& batch;
  TensorView x;    ///< (N,C) f32: the embedded tokens
  TensorView out;  ///< (N,C) f32, written: the residual stream after the last layer
};

/// "" when fused_layers() takes this step, else why not. Allocates nothing.
std::string_view fused_layers_refusal(ExecContext& context, const FusedLayersArgs& args);

/// Writes keys and values of the new tokens into the cache, without advance(), and `out`: the bits of the
/// same layers by linear() and cached_attention(). Takes what is not refused. Throws Error{device}.
void fused_layers(ExecContext& context, const FusedLayersArgs& args);

}  // namespace inkling
