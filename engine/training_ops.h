// The ops of a training step beside those of ops.h: gradients, the loss, dropout, the optimiser.
//
// Same seam, same manners: one struct of views, arguments checked once (Error{usage}: op, argument, expected,
// got), one virtual call, everything in the Backend's memory. Rows are f32; those marked "or half" may have
// the Backend's activation_dtype() for bf16 instead, all of one op alike unless it says otherwise. Sums are
// f32, and what they add up, and in which order, depends on the shapes alone: bits are equal for any number
// of threads.
#pragma once

#include <cstdint>
#include <span>

#include "engine/ops.h"

namespace inkling {

/// Gradients of out = act(pre) · w + bias: dx = dout · wᵀ · act'(pre), dweight += xᵀ · dout, dbias += Σ_m
/// dout[m]; without an activation, of out = x · w + bias. Sums over m run in order from row 0, some from what
/// they are added to, so the bits depend on the rows and on nothing else.
struct LinearBackwardArgs {
  TensorView x;            ///< (M, K) f32 or half, that of the forward pass; only dweight needs it
  TensorView weight;       ///< (K, N) f32, any strides, or as LinearArgs::matrix; only dx needs it
  TensorView dout;         ///< (M, N) f32 or half
  TensorView dx;           ///< (M, K) f32 or half, whatever dout is, written; or empty
  TensorView dweight;      ///< (K, N) f32, added to; or empty
  float* dbias = nullptr;  ///< (N), added to; or null
  /// What products multiply with: f32, or bf16 (sums and results stay f32). On avx512_bf16 both factors are
  /// rounded to bf16, elsewhere the weight (for dx) and dout (for dweight) alone.
  WeightFormat format = WeightFormat::f32;
  Activation activation = Activation::none;  ///< what x came out of;
  TensorView pre_activation{};               ///< (M, K) as dx, what went into it; only dx needs it
  bool replaces = false;                     ///< with rows, dweight and dbias are written, not added to
};
void linear_backward(ExecContext& context, const LinearBackwardArgs& args);

/// In place: x = residual + (kept ? x / (1 − p) : 0), with x read from `from` where that is given. Element c
/// of row i (counted from the start of its sequence b) is kept when word c mod 4 of philox({c / 4, i, 2³¹ +
/// b, offset}, seed) is at least ⌊p · 2³²⌋. Applied to a gradient it is its own backward pass. (Attention
/// draws from the counters below 2³¹: attention/sdpa.h.)
struct DropoutArgs {
  TensorView x;                              ///< (N, C) f32 or half
  std::span<const std::int32_t> cu_seqlens;  ///< (B+1), rising from 0 to N
  float p = 0.0f;                            ///< in [0, 1)
  std::uint64_t seed = 0;
  std::uint32_t offset = 0;  ///< differs per use and step
  TensorView residual{};     ///< (N, C) f32, not x; or empty: 0
  TensorView from{};         ///< (N, C) f32 or half, whatever x is; or empty: x itself
  LayerNorm norm{};          ///< of the result,
  TensorView normed{};       ///< (N, C) f32 or half, written beside it; or empty. Then x is f32
};
void dropout(ExecContext& context, const DropoutArgs& args);

/// Gradient of norm(x): dx += d norm(x)/dx · dout (added: the residual stream's gradient flows past the
/// norm), dweight[c] += Σ_m dout · (x − mean)/σ, dbias[c] += Σ_m dout. dx must not overlap x. `branch` is
/// what flows into the branch before it: dropout of the new dx, whose x is written, and whose `from` it is.
struct LayerNormBackwardArgs {
  TensorView x;              ///< (M, C) f32, input of the forward pass
  LayerNorm norm;            ///< that of the forward pass; its bias is not needed
  TensorView dout;           ///< (M, C) f32 or half
  TensorView dx;             ///< (M, C) f32, added to
  float* dweight = nullptr;  ///< (C), added to; or null
  float* dbias = nullptr;    ///< (C), added to; or null
  DropoutArgs branch{};      ///< or without an x: none
  bool replaces = false;     ///< with rows, dweight and dbias are written, not added to
};
void layer_norm_backward(ExecContext& context, const LayerNormBackwardArgs& args);

/// In place: dx *= activation'(x). ReLU's derivative at 0 is 0. Writes activation(x) beside it where a
/// backward pass wants that once more: nearly free.
struct ActivateBackwardArgs {
  TensorView x;  ///< (M, C) f32 or half, input of the activation: LinearArgs::pre_activation
  Activation activation = Activation::none;
  TensorView dx;           ///< (M, C) as x
  TensorView activated{};  ///< (M, C) as x, written; or empty
};
void activate_backward(ExecContext& context, const ActivateBackwardArgs& args);

/// dtoken[ids[i]] += dout[i], dposition[positions[i]] += dout[i], rows in order i.
struct EmbedBackwardArgs {
  std::span<const std::int32_t> ids;        ///< (M), each in [0, V)
  std::span<const std::int32_t> positions;  ///< (M), each in [0, T)
  TensorView dout;                          ///< (M, C) f32 or half
  TensorView dtoken;                        ///< (V, C) f32, added to
  TensorView dposition;                     ///< (T, C) f32, added to
};
void embed_backward(ExecContext& context, const EmbedBackwardArgs& args);

/// losses[m] = log Σ_v e^logits[m][v] − logits[m][targets[m]], and 0 where targets[m] is −1. When scale ≠ 0,
/// logits become their gradients: scale · (softmax(logits[m]) − onehot(targets[m])), zeros where −1.
/// A caller short of memory calls it for a few rows at a time.
struct CrossEntropyArgs {
  TensorView logits;                      ///< (M, V) f32 or half
  std::span<const std::int32_t> targets;  ///< (M), each in [−1, V)
  float scale = 0.0f;                     ///< of the gradient; 0: logits stay as they are
  std::span<float> losses;                ///< (M)
};
void cross_entropy(ExecContext& context, const CrossEntropyArgs& args);

/// Σ x² in f64. Waits for the device.
double sum_of_squares(ExecContext& context, std::span<const float> x);

/// One step of AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2),
/// as torch.optim.AdamW, with g = gradient · gradient_scale:
///   parameter −= learning_rate · weight_decay · parameter
///   m += (1 − beta1)(g − m),  v = beta2 · v + (1 − beta2) g²
///   parameter −= learning_rate / (1 − beta1^step) · m / (√v / √(1 − beta2^step) + epsilon)
/// Rates are doubles: 1 − 0.999f is off by 1e-5.
struct AdamWArgs {
  std::span<float> parameter;
  std::span<const float> gradient;
  std::span<float> m, v;  ///< first and second moments; zeros before step 1
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  float gradient_scale = 1.0f;  ///< of clipping
  std::int64_t step = 1;        ///< counts from 1
  /// (1, n) in a 16-bit activation_dtype(), written: the new parameter as products take it; or empty.
  TensorView rounded{};
};
void adamw(ExecContext& context, const AdamWArgs& args);

}  // namespace inkling
