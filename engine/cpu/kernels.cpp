#include "engine/cpu/kernels.h"

namespace inkling::cpu {

const CpuKernels& kernels(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::portable:
      return kernels_portable();
    case Isa::avx2:
      return kernels_avx2();
    case Isa::avx512:
      return kernels_avx512();
    case Isa::avx512_vnni:
      return kernels_avx512_vnni();
    case Isa::avx512_bf16:
      return kernels_avx512_bf16();
  }
#endif
  (void)isa;
  return kernels_portable();
}

std::size_t panel_nbytes(const CpuKernels& table, WeightFormat format, std::int64_t k) noexcept {
  const std::int64_t padded = padded_k(table, format, k), columns = table.panel;
  std::int64_t bytes = 0;
  switch (format) {
    case WeightFormat::f32:
      bytes = padded * columns * 4;
      break;
    case WeightFormat::f16:
    case WeightFormat::bf16:
      bytes = padded * columns * 2;
      break;
    case WeightFormat::int8:
      bytes = padded * columns + (k + kInt8Group - 1) / kInt8Group * columns * 2;
      break;
    case WeightFormat::int4:
      bytes = padded * columns / 2 + (k + kInt4Group - 1) / kInt4Group * columns * 4;
      break;
  }
  return static_cast<std::size_t>((bytes + 63) / 64 * 64);
}

}  // namespace inkling::cpu
