// When a kernel of a chain may begin (chain.cuh).
#pragma once

#include <cstdint>

namespace inkling::cuda {

enum class Start : std::uint8_t {
  early,   ///< while the kernel before it still runs: what it reads early was written long before
  in_turn  ///< once the kernel before it is over, which may have written that
};

}  // namespace inkling::cuda
