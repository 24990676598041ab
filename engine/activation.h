// The non-linearities of an MLP.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace inkling {

enum class Activation : std::uint8_t { none, gelu_tanh, gelu_erf, relu };

constexpr std::string_view activation_name(Activation activation) noexcept {
  constexpr std::string_view kNames[] = {"none", "gelu_tanh", "gelu_erf", "relu"};
  return kNames[static_cast<std::size_t>(activation)];
}

}  // namespace inkling
