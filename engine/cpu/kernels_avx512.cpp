#include "engine/cpu/simd/avx512.h"
#include "engine/cpu/table.h"

namespace inkling::cpu {

const CpuKernels& kernels_avx512() {
  static const CpuKernels table = make_kernels<simd::Avx512>(Isa::avx512);
  return table;
}

}  // namespace inkling::cpu
