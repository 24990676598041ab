#include <string>

#include "attention/cuda/cuda_attention.h"
#include "attention/cuda/cuda_sdpa.h"
#include "engine/exec_context.h"

namespace inkling {
namespace {

[[noreturn]] void refuse(const char* op, const ExecContext& context) {
  throw Error(Code::device, std::string(op) + ": expected a build with CUDA kernels, got " +
                                context.backend().description());
}

}  // namespace

CachedStep begin_cached_step_on_cuda(ExecContext& context, const CachedStepArgs&) {
  refuse("cached_attention", context);
}

void cached_attention_on_cuda(ExecContext& context, const CachedAttentionArgs&) {
  refuse("cached_attention", context);
}

void sdpa_on_cuda(ExecContext& context, const SdpaProblem&, SdpaBackend) {
  refuse("sdpa", context);
}

void sdpa_backward_on_cuda(ExecContext& context, const SdpaProblem&, const SdpaBackwardArgs&, SdpaBackend) {
  refuse("sdpa_backward", context);
}

bool reads_drawn_on_cuda(ExecContext& context, DType, std::int64_t) {
  refuse("sdpa", context);
}

}  // namespace inkling
