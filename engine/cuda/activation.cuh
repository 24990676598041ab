// The non-linearities of engine/activation.h, in f32.
#pragma once

#include "engine/activation.h"

namespace inkling::cuda {

__device__ inline float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu_tanh: {
      constexpr float kScale = 0.7978845608028654f, kCube = 0.044715f;  // √(2/π)
      return 0.5f * x * (1.0f + tanhf(kScale * (x + kCube * x * x * x)));
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
