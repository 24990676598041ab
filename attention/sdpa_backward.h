// Gradients of sdpa(). Works for every mask, packed lengths, GQA and dropout: the mask is drawn again, never
// stored.
#pragma once

#include "attention/sdpa.h"

namespace inkling {

struct SdpaBackwardArgs {
  SdpaArgs forward;  ///< as given to sdpa(), with out and lse as it left them; no cache
  TensorView dout;   ///< (N, H, D) gradient of out
  TensorView dq;     ///< (N, H, D) written
  TensorView dk;     ///< (S, Hkv, D) written
  TensorView dv;     ///< (S, Hkv, D) written. All in f32 or the dtype of q
  TensorView dbias;  ///< as mask.bias, both contiguous, f32, written; or empty. Only for additive_bias
};

/// What sdpa_backward() would take under the policy of the context, and why not the others.
SdpaChoice choose_backward(ExecContext& context, const SdpaBackwardArgs& args);

/// Writes the gradients and returns the backend that did it: math (f64) or flash; on a GPU
/// what flash does not take (dout in another dtype than q, gradients of several, a broadcast dbias) is
/// math's.
/// Deterministic: the bits depend on neither the threads nor the batch. O(T) memory with flash. Unlike
/// sdpa(), it may multiply by zero what the mask hides within a tile, and 0 · NaN is NaN: values of a
/// sequence must be finite, hidden ones too. Throws Error{usage}.
SdpaBackend sdpa_backward(ExecContext& context, const SdpaBackwardArgs& args);

}  // namespace inkling
