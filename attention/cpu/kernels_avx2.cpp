#include "attention/cpu/table.h"
#include "engine/cpu/simd/avx2.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels_avx2() {
  static constexpr AttentionKernels kTable = make_attention_kernels<simd::Avx2>();
  return kTable;
}

}  // namespace inkling::cpu
