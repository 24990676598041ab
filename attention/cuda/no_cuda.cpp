#include "attention/cuda/cuda_attention.h"
#include "engine/exec_context.h"

namespace inkling {

CachedStep begin_cached_step_on_cuda(ExecContext& context, const CachedStepArgs&) {
  throw Error(Code::device,
              "cached_attention: expected a build with CUDA kernels, got " + context.backend().description());
}

void cached_attention_on_cuda(ExecContext& context, const CachedAttentionArgs&) {
  throw Error(Code::device,
              "cached_attention: expected a build with CUDA kernels, got " + context.backend().description());
}

}  // namespace inkling
