// Integer weights on the device, sixteen of a column at a time: a piece of them, the numbers of its group,
// and what they stand for (quant_format.h).
#pragma once

#include <type_traits>

#include "engine/cuda/element.cuh"
#include "engine/cuda/quant_format.h"

namespace inkling::cuda {

inline constexpr int kQuantPiece = 16;

/// Four integers or fewer become floats by the bits of 2²³ + n, from which 2²³ is taken: exact, and no
/// conversion, of which a processor makes a quarter as many.
inline constexpr std::uint32_t kTwo23Bits = 0x4B000000;
inline constexpr float kTwo23 = 8388608.0f;

template <WeightFormat kFormat>
struct Quantised;

template <>
struct Quantised<WeightFormat::int8> {
  using Piece = uint4;
  using Numbers = __half;  // scale
  static constexpr int kGroup = static_cast<int>(kInt8Group);

  static __device__ void widen(const Piece& piece, Numbers numbers, float (&v)[kQuantPiece]) {
    const float scale = __half2float(numbers);
    const std::uint32_t words[] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < kQuantPiece; ++i) {
      const std::uint32_t byte = __byte_perm(words[i / 4], kTwo23Bits, 0x7440 + i % 4);
      v[i] = (__uint_as_float(byte) - (kTwo23 + 128.0f)) * scale;
    }
  }
};

template <>
struct Quantised<WeightFormat::int4> {
  using Piece = uint2;
  using Numbers = __half2;  // scale, minimum
  static constexpr int kGroup = static_cast<int>(kInt4Group);

  static __device__ void widen(const Piece& piece, Numbers numbers, float (&v)[kQuantPiece]) {
    const float scale = __low2float(numbers), minimum = __high2float(numbers);
    // A nibble is taken where it lies, as 1, 16, 256 or 4096 times itself: powers of two are exact.
    const float scales[] = {scale, scale * 0x1p-4f, scale * 0x1p-8f, scale * 0x1p-12f};
    const std::uint32_t words[] = {piece.x, piece.y};
#pragma unroll
    for (int i = 0; i < kQuantPiece; ++i) {
      const std::uint32_t half = words[i / 8] >> (i / 4 % 2 * 16);
      const std::uint32_t nibble = half & (0xfu << (i % 4 * 4));
      v[i] = fmaf(__uint_as_float(nibble | kTwo23Bits) - kTwo23, scales[i % 4], minimum);
    }
  }
};

/// The weights of a piece as two times 16 bytes.
template <WeightFormat kFormat>
__device__ inline void weights_of(const typename Quantised<kFormat>::Piece& piece,
                                  typename Quantised<kFormat>::Numbers numbers, uint4 (&out)[2]) {
  float v[kQuantPiece];
  Quantised<kFormat>::widen(piece, numbers, v);
  std::uint32_t w[kQuantPiece / 2];
#pragma unroll
  for (int i = 0; i < kQuantPiece / 2; ++i) w[i] = pack2<__nv_bfloat16>(v[2 * i], v[2 * i + 1]);
  out[0] = make_uint4(w[0], w[1], w[2], w[3]);
  out[1] = make_uint4(w[4], w[5], w[6], w[7]);
}

/// The same of a row from k on, a multiple of sixteen; its numbers are so many bytes behind its beginning.
template <WeightFormat kFormat>
__device__ inline void weights_at(const std::byte* row, std::int64_t numbers, int k, uint4 (&out)[2]) {
  using Format = Quantised<kFormat>;
  weights_of<kFormat>(reinterpret_cast<const typename Format::Piece*>(row)[k / kQuantPiece],
                      reinterpret_cast<const typename Format::Numbers*>(row + numbers)[k / Format::kGroup],
                      out);
}

/// Calls body(std::integral_constant<WeightFormat, …>).
template <class Body>
cudaError_t with_quantised(WeightFormat format, const Body& body) {
  if (format == WeightFormat::int8) return body(std::integral_constant<WeightFormat, WeightFormat::int8>());
  return body(std::integral_constant<WeightFormat, WeightFormat::int4>());
}

}  // namespace inkling::cuda
