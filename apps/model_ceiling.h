// The most tokens a second that this machine's measured limits allow a model: reading its weights once a
// step, multiplying and adding, whichever takes longer. Attention and the KV cache are left out, so that the
// true limit of a long context is lower.
#pragma once

#include <cstdint>

#include "apps/ceilings.h"
#include "model/model.h"

namespace inkling::app {

class ModelCeiling {
 public:
  /// `model` outlives it.
  ModelCeiling(const Model& model, const Ceilings& machine) : model_(model), machine_(machine) {}

  /// Tokens a second of steps of `batch` sequences.
  double decode(std::int64_t batch) const;
  /// Of a prompt of `length` tokens with the logits of its last; 0 where the machine's arithmetic could not
  /// be measured.
  double prefill(std::int64_t length) const;

 private:
  double step_bytes() const;
  double layer_flops() const;
  double head_flops() const;

  const Model& model_;
  Ceilings machine_;
};

}  // namespace inkling::app
