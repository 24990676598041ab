#include "attention/cpu/kernels.h"

namespace inkling::cpu {

const AttentionKernels& attention_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return attention_kernels_avx512();  // VNNI and BF16 have nothing to add here
  if (isa == Isa::avx2) return attention_kernels_avx2();
#endif
  (void)isa;
  return attention_kernels_portable();
}

}  // namespace inkling::cpu
