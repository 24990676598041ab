// What the ops of ops.cpp and training_ops.cpp tell the profiler of an element, beside its products. Counted
// as in profiler.h.
#pragma once

#include "engine/activation.h"
#include "engine/ops.h"
#include "engine/profiler.h"

namespace inkling::op {

/// Reads and writes `touched` elements of f32 per element of x, and computes `flops`.
inline ProfileWork elementwise(const TensorView& x, double touched, double flops) {
  const auto elements = static_cast<double>(x.numel());
  return {4 * touched * elements, flops * elements, {x.shape[0], 0, 0}};
}

/// e^(x − max) and its sum: subtract, exp, add.
inline constexpr double kSoftmaxSum = 3;

/// The mean 1; the square of what is off it, and the sum, 3; (x − mean)/σ 2; times weight 1, plus bias 1.
constexpr double norm_flops(const LayerNorm& norm) noexcept {
  if (norm.weight == nullptr) return 0;
  return norm.bias != nullptr ? 8 : 7;
}

/// tanh: u = x(k + k·c·x²) 4, tanh, x/2 · (1 + tanh) 3. erf: of x/√2 2, x/2 · (1 + erf) 3.
constexpr double activation_flops(Activation activation) noexcept {
  switch (activation) {
    case Activation::gelu_tanh:
      return 8;
    case Activation::gelu_erf:
      return 5;
    case Activation::none:
    case Activation::relu:
      break;
  }
  return 0;
}

/// dx · act'(x). tanh: s = (1 + tanh u)/2 7, u' = k + 3k·c·x² 2, s + 2x · s(1 − s) · u' 6, times dx 1. erf: Φ
/// 4, Φ + x · k · e^(−x²/2) 6, times dx 1.
constexpr double activation_slope_flops(Activation activation) noexcept {
  switch (activation) {
    case Activation::gelu_tanh:
      return 16;
    case Activation::gelu_erf:
      return 11;
    case Activation::none:
    case Activation::relu:
      break;
  }
  return 0;
}

}  // namespace inkling::op
