#include "engine/cpu/simd/portable.h"
#include "engine/cpu/table.h"

namespace inkling::cpu {

const CpuKernels& kernels_portable() {
  static const CpuKernels table = make_kernels<simd::Portable>(Isa::portable);
  return table;
}

}  // namespace inkling::cpu
