#include "attention/cpu/append.h"
#include "attention/cpu/forward.h"
#include "engine/cpu/simd/avx2.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels_avx2() {
  static constexpr AttentionKernels kTable{&Append<simd::Avx2>::run, &Forward<simd::Avx2>::run};
  return kTable;
}

}  // namespace inkling::cpu
