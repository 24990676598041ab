// int8 and int4 weights in a GPU's memory: a column of the matrix (K, N) is a row here, its integers side by
// side and the numbers of its groups behind them.
//
//   int8   K bytes, value = scale × (byte − 128); a f16 scale for each group of 128
//   int4   K nibbles, the lower of a byte first, value = scale × nibble + minimum; two f16 for each group of
//   64
//
// K is rounded up to 64, a step of the products; what is beyond K is as good as zero, for x is zero there.
// Groups, scales and integers are those of the CPU's packed matrix (engine/cpu/panels.h), to the bit.
//
// A weight is bf16(value in f32), the same from every kernel and from unpack_column(): a product with
// integers has the bits of the product with a bf16 matrix of these weights. Activations are not quantised.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/packed_matrix.h"

namespace inkling::cuda {

/// A matrix of integers in device memory.
struct QuantMatrix {
  const std::byte* data = nullptr;
  WeightFormat format = WeightFormat::int8;
  std::int64_t rows = 0;     ///< N
  std::int64_t columns = 0;  ///< K
  std::int64_t numbers = 0;  ///< bytes from the beginning of a row to its scales
  std::int64_t stride = 0;   ///< bytes from row to row, whole sectors of 32

  QuantMatrix(const std::byte* memory, WeightFormat type, std::int64_t k, std::int64_t n) noexcept
      : data(memory), format(type), rows(n), columns(k) {
    const std::int64_t padded = (k + 63) / 64 * 64, group = group_size(type),
                       groups = (k + group - 1) / group;
    numbers = type == WeightFormat::int8 ? padded : padded / 2;
    stride = (numbers + groups * (type == WeightFormat::int8 ? 2 : 4) + 31) / 32 * 32;
  }
  /// Rows [begin, begin + count).
  QuantMatrix part(std::int64_t begin, std::int64_t count) const noexcept {
    QuantMatrix some = *this;
    some.data += begin * stride;
    some.rows = count;
    return some;
  }
};

/// The weights of one row whose bytes are at `row`, in host memory: bf16 as f32 (K).
inline void unpack_row(const QuantMatrix& m, const std::byte* row, float* out) noexcept {
  const auto* const integers = reinterpret_cast<const std::uint8_t*>(row);
  const auto* const numbers = reinterpret_cast<const f16*>(row + m.numbers);
  for (std::int64_t k = 0; k < m.columns; ++k) {
    const std::int64_t group = k / group_size(m.format);
    float value = 0;
    if (m.format == WeightFormat::int8) {
      value = static_cast<float>(numbers[group]) * static_cast<float>(integers[k] - 128);
    } else {
      const int nibble = integers[k / 2] >> (k % 2 * 4) & 0xf;
      value = static_cast<float>(numbers[2 * group]) * static_cast<float>(nibble) +
              static_cast<float>(numbers[2 * group + 1]);
    }
    out[k] = static_cast<float>(bf16(value));
  }
}

}  // namespace inkling::cuda
