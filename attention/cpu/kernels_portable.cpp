#include "attention/cpu/table.h"
#include "engine/cpu/simd/portable.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels_portable() {
  static constexpr AttentionKernels kTable = make_attention_kernels<simd::Portable>();
  return kTable;
}

}  // namespace inkling::cpu
