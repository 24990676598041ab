// What attention/ asks of a GPU; no CUDA type. A build without CUDA has no_cuda.cpp.
#pragma once

#include "attention/cached_attention.h"

namespace inkling {

/// cached_attention() on the GPU of `context`; arguments are checked. A sequence with at most 16 query rows
/// per key/value head is the decode kernel's, one that begins the Hopper kernel's where that can run, every
/// other the plain flash kernel's: which of them it is depends on the sequence and not on the batch, and they
/// agree to rounding. A policy without decode leaves the plain kernel alone: the same bits for any chunking.
void cached_attention_on_cuda(ExecContext& context, const CachedAttentionArgs& args);
CachedStep begin_cached_step_on_cuda(ExecContext& context, const CachedStepArgs& args);

}  // namespace inkling
