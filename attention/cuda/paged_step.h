// A step over the paged cache as kernels beside cached_attention() want to know it. Seen by */cuda/ alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cached_attention.h"
#include "attention/cuda/args.h"

namespace inkling::cuda {

/// Device pointers, good until another step is prepared in the same context.
struct PagedStep {
  KvPages pages;                         ///< of layer 0
  std::size_t layer_bytes = 0;           ///< from a layer to the next, in a page
  const std::int32_t* length = nullptr;  ///< (B) tokens in the pages before the step
  std::int32_t most_keys = 0;            ///< at least those of the longest sequence, its new ones too
  bool decode = false;                   ///< every sequence is the decode kernel's
};
/// Uploads what the device does not have yet, as begin_cached_step() does, and throws as it does.
PagedStep paged_step(ExecContext& context, const CachedStepArgs& args);

}  // namespace inkling::cuda
