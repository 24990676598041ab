// fused_layers: a whole step of decoding as one op, where the device has such a form.
#pragma once

#include <string_view>

#include "engine/exec_context.h"
#include "model/model.h"
#include "model/packed_batch.h"

namespace inkling {

struct FusedLayersArgs {
  const Model& model;
  const PackedBatch& batch;
  TensorView logits;  ///< (N,V) f32, written
};

/// "" when fused_layers() takes this step, else why not; logits are not looked at. Allocates nothing.
std::string_view fused_layers_refusal(ExecContext& context, const FusedLayersArgs& args);

/// Writes keys and values of the new tokens into the cache, without advance(), and `logits`: the bits of
/// embed(), the same layers by linear() and cached_attention(), and linear() for the head. Takes a batch that
/// is valid and not refused. Throws Error{device}.
void fused_layers(ExecContext& context, const FusedLayersArgs& args);

}  // namespace inkling
