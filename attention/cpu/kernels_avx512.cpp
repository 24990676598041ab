#include "attention/cpu/append.h"
#include "attention/cpu/forward.h"
#include "engine/cpu/simd/avx512.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels_avx512() {
  static constexpr AttentionKernels kTable{&Append<simd::Avx512>::run, &Forward<simd::Avx512>::run};
  return kTable;
}

}  // namespace inkling::cpu
