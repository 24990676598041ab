// What attention/ asks of a GPU; no CUDA type. A build without CUDA has no_cuda.cpp.
#pragma once

#include "attention/cached_attention.h"

namespace inkling {

/// cached_attention() on the GPU of `context`; arguments are checked. A sequence with at most 16 query rows
/// per key/value head is the decode kernel's, unless the policy leaves that out, every other the flash
/// kernel's: which of them it is depends on the sequence and not on the batch, and the two agree to rounding.
void cached_attention_on_cuda(ExecContext& context, const CachedAttentionArgs& args);
CachedStep begin_cached_step_on_cuda(ExecContext& context, const CachedStepArgs& args);

}  // namespace inkling
