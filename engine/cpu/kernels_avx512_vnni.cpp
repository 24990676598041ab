#include "engine/cpu/simd/avx512.h"
#include "engine/cpu/table.h"

namespace inkling::cpu {

const CpuKernels& kernels_avx512_vnni() {
  static const CpuKernels table = make_kernels<simd::Avx512Vnni>(Isa::avx512_vnni);
  return table;
}

}  // namespace inkling::cpu
