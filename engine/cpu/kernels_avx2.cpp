#include "engine/cpu/simd/avx2.h"
#include "engine/cpu/table.h"

namespace inkling::cpu {

const CpuKernels& kernels_avx2() {
  static const CpuKernels table = make_kernels<simd::Avx2>(Isa::avx2);
  return table;
}

}  // namespace inkling::cpu
