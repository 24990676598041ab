// The non-linearities of engine/activation.h, in f32.
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
      // ½ (1 + tanh u) = 1 / (1 + e^(−2u)), at a few units of 2⁻²³ and a tenth of the instructions of
      // tanhf().
      constexpr float kTwice = -2.0f * 0.7978845608028654f, kCube = 0.044715f;  // √(2/π)
      return __fdividef(x, 1.0f + __expf(kTwice * (x + kCube * x * x * x)));
    }
    case Activation::gelu_erf:
      return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case Activation::relu:
      return fmaxf(x, 0.0f);
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace inkling::cuda
