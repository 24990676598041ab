#include "attention/cpu/table.h"
#include "engine/cpu/simd/avx512.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels_avx512() {
  static constexpr AttentionKernels kTable = make_attention_kernels<simd::Avx512>();
  return kTable;
}

}  // namespace inkling::cpu
