#include "engine/cpu/simd/avx512.h"
#include "engine/cpu/table.h"

namespace inkling::cpu {

const CpuKernels& kernels_avx512_bf16() {
  static const CpuKernels table = make_kernels<simd::Avx512Bf16>(Isa::avx512_bf16);
  return table;
}

}  // namespace inkling::cpu
