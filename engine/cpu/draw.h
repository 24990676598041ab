// A draw by the book, for the CPU's op and as the oracle of others: everything sorted, one token after the
// other. model/sampler.h draws the same ids fast.
#pragma once

#include <cstdint>
#include <span>

#include "engine/draw_rule.h"

namespace inkling {

/// The id drawn from `logits` (V); 0 when none is above −inf. Θ(V log V).
std::int32_t draw_from(std::span<const float> logits, const DrawSettings& draw);

}  // namespace inkling
