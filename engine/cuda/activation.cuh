// The non-linearities of engine/activation.h, in f32. No product is left to be contracted with what is added
// behind it: kernels that add in another place have the same bits.
#pragma once

#include <type_traits>

#include "engine/activation.h"

namespace inkling::cuda {

/// Calls body(std::integral_constant<Activation, …>), so that a loop inside holds one formula and no choice.
template <class Body>
__device__ inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>());
    case Activation::gelu_erf:
      return body(std::integral_constant<Activation, Activation::gelu_erf>());
    case Activation::relu:
      return body(std::integral_constant<Activation, Activation::relu>());
    case Activation::none:
      return body(std::integral_constant<Activation, Activation::none>());
  }
}

__device__ inline float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu_tanh: {
      // ½ (1 + tanh u) = 1 / (1 + e^(−2u)), at a few units of 2⁻²³: seven instructions. Flushing denormals
      // changes nothing beside the one that is added, nor where the quotient rounds to zero anyway.
      constexpr float kTwice = -2.0f * 0.7978845608028654f * 1.4426950408889634f,
                      kCube = 0.044715f;  // √(2/π)
      float e, quotient;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * fmaf(x * x, kTwice * kCube, kTwice)));
      asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(1.0f + e));
      return __fmul_rn(x, quotient);
    }
    case Activation::gelu_erf:
      return __fmul_rn(0.5f * x, 1.0f + erff(x * 0.7071067811865476f));
    case Activation::relu:
      return fmaxf(x, 0.0f);
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace inkling::cuda
