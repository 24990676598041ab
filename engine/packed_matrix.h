// PackedMatrix: a weight matrix (K inputs × N outputs) in the order in which the kernels read it.
//
// Columns are cut into panels of `panel` outputs (64 on AVX-512, 16 elsewhere; the last is padded with
// zeros). A panel is one contiguous run of memory walked once per product, k rising:
//   f32, f16, bf16   [K][panel]
//   bf16 on avx512_bf16   [K/2][panel][2]
//   int8   per group of 128 k: scales f16 [panel], then bytes [len/4][panel][4], value = scale × (byte − 128)
//   int4   per group of 64 k: scales f16 [panel], minima f16 [panel], then nibbles [len/8][panel][4]:
//          byte b of a column holds k = b in its low and k = b + 4 in its high half,
//          value = scale × nibble + minimum
// Scales and minima are f16. A weight comes back within half a step (max|w|/127, range/15), 2^-10 · max|w| of
// their rounding, and 2^-18 (int8) or 2^-21 (int4) where they are below f16's normal numbers: a group whose
// largest weight is below 0.008 loses accuracy, and one below 4e-6 becomes zeros in int8. A group with NaN or
// ±inf, or past f16's range, is not finite. tests/engine/quantised.cpp holds this from 1e-7 to 1e4.
// Integer formats multiply with activations quantised per row and group to signed bytes; sums are exact
// integers within a group and f32 across groups, in order.
// On a GPU a "panel" is one column: of floats K rounded up to 64 bytes, zeros beyond; of the same integers
// with the same scales as engine/cuda/quant_format.h says. There activations are not quantised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "engine/cpu/isa.h"
#include "engine/device.h"
#include "engine/tensor.h"

namespace inkling {

enum class WeightFormat : std::uint8_t { f32, f16, bf16, int8, int4 };

constexpr std::string_view weight_format_name(WeightFormat format) noexcept {
  constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "int8", "int4"};
  return kNames[static_cast<std::size_t>(format)];
}

inline constexpr std::int64_t kInt8Group = 128;
inline constexpr std::int64_t kInt4Group = 64;

/// Inputs per scale; 0 for the float formats.
constexpr std::int64_t group_size(WeightFormat format) noexcept {
  return format == WeightFormat::int8 ? kInt8Group : format == WeightFormat::int4 ? kInt4Group : 0;
}

/// Immutable once made (ops.h: pack). Any number of threads may read it. Move-only. Its memory is its own, or
/// part of a slab that its maker keeps: a model's matrices lie back to back in one, so that huge pages hold
/// them all.
struct PackedMatrix {
  WeightFormat format = WeightFormat::f32;
  Device device = Device::cpu;  ///< whose memory it lies in
  Isa isa = Isa::portable;      ///< the family whose layout this is
  std::int64_t k = 0;           ///< inputs
  std::int64_t n = 0;           ///< outputs
  std::int64_t panel = 0;       ///< outputs per panel
  std::size_t panel_bytes = 0;  ///< a multiple of 64; of a GPU's integers of 32
  const std::byte* data = nullptr;
  std::size_t bytes = 0;  ///< of data
  Buffer owned;           ///< the memory, unless it lies in a slab

  std::int64_t panels() const noexcept { return panel == 0 ? 0 : (n + panel - 1) / panel; }
  const std::byte* panel_data(std::int64_t index) const noexcept {
    return data + static_cast<std::size_t>(index) * panel_bytes;
  }
};

}  // namespace inkling
