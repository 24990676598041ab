#include "attention/cpu/append.h"
#include "attention/cpu/forward.h"
#include "engine/cpu/simd/portable.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels_portable() {
  static constexpr AttentionKernels kTable{&Append<simd::Portable>::run, &Forward<simd::Portable>::run};
  return kTable;
}

}  // namespace inkling::cpu
