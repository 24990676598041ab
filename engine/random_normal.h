// Normal deviates by position: element i of stream s depends on (i, s, seed) alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>

#include "engine/philox.h"

namespace inkling {

/// Fills `to` from N(0, deviation²): Box and Muller (1958), two words a value, of
/// philox({i, stream, 2³² − 1, 2³² − 1}, seed): counters that no dropout draws from, since the same seed for
/// both is a natural thing to write.
inline void fill_normal(std::span<float> to, double deviation, std::uint64_t seed, std::uint32_t stream) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    const PhiloxWords words = philox({static_cast<std::uint32_t>(i), stream, UINT32_MAX, UINT32_MAX}, seed);
    const double radius = std::sqrt(-2.0 * std::log(1.0 - philox_unit(words[0], words[1])));
    const double angle = 2.0 * std::numbers::pi * philox_unit(words[2], words[3]);
    to[i] = static_cast<float>(deviation * radius * std::cos(angle));
  }
}

}  // namespace inkling
