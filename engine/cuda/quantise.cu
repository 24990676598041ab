// Integer weights: quantised as a model is loaded, read back for products of many rows, looked up in an
// embedding. All are bound by memory. Compiled without contraction to FMA, as the CPU's packing is, whose
// integers these are.
#include "engine/cuda/quantise.h"

#include "engine/cuda/chain.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/quant_piece.cuh"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / kWarp;

/// The fold of a warp's values; NaN stays.
template <class Before>
__device__ float warp_fold(float value, const Before& before) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, value, step);
    if (before(other, value) || other != other) value = other;
  }
  return value;
}
__device__ float largest(float value) {
  return warp_fold(value, [](float a, float b) { return a > b; });
}
__device__ float smallest(float value) {
  return warp_fold(value, [](float a, float b) { return a < b; });
}

__device__ float inverse(float scale) {
  return scale > 0.0f ? 1.0f / scale : 0.0f;
}

/// The integers of a lane's neighbours in a group that a warp has between its lanes, `inside` of them there,
/// and the numbers of the group.
__device__ std::uint32_t quantised_group(const float (&v)[4], int inside, __half& scale) {
  float top = 0.0f;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float a = fabsf(v[e]);
    if (e < inside && (a > top || a != a)) top = a;
  }
  scale = __float2half_rn(largest(top) / 127.0f);
  const float to_steps = inverse(__half2float(scale));
  std::uint32_t word = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float steps = e < inside ? v[e] * to_steps : 0.0f;
    const float clamped = steps > 127.0f ? 127.0f : steps > -127.0f ? steps : -127.0f;
    word |= static_cast<std::uint32_t>(clamped + 128.5f) << (8 * e);
  }
  return word;
}
__device__ std::uint8_t quantised_group(const float (&v)[2], int inside, __half2& numbers) {
  // What is not there repeats the first, which is: it bounds nothing.
  const float first = __shfl_sync(0xffffffffu, v[0], 0);
  float low = inside > 0 ? v[0] : first, high = low;
  if (inside > 1) {
    low = v[1] < low || v[1] != v[1] ? v[1] : low;
    high = v[1] > high ? v[1] : high;
  }
  const __half minimum = __float2half_rn(smallest(low));
  low = __half2float(minimum);
  const __half scale = __float2half_rn((largest(high) - low) / 15.0f);
  numbers = __halves2half2(scale, minimum);
  const float to_steps = inverse(__half2float(scale));
  unsigned byte = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float steps = (v[e] - low) * to_steps + 0.5f;
    const unsigned q = steps > 15.0f ? 15 : steps > 0.0f ? static_cast<unsigned>(steps) : 0;
    byte |= (e < inside ? q : 0) << (4 * e);
  }
  return static_cast<std::uint8_t>(byte);
}

/// A warp per group of a column.
template <class In, WeightFormat kFormat>
__global__ void quantise_kernel(const MatrixSource source, const QuantMatrix out) {
  using Format = Quantised<kFormat>;
  constexpr int kEach = Format::kGroup / kWarp;
  const std::int64_t n = blockIdx.x;
  const int group = static_cast<int>(blockIdx.y) * kWarps + threadIdx.x / kWarp;
  const int begin = group * Format::kGroup, k = begin + static_cast<int>(threadIdx.x) % kWarp * kEach;
  if (begin >= source.k) return;
  const In* const from = static_cast<const In*>(source.data) + n * source.n_stride;
  const int inside = static_cast<int>(min(max(source.k - k, std::int64_t{0}), std::int64_t{kEach}));
  float v[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) v[e] = e < inside ? to_float(from[(k + e) * source.k_stride]) : 0.0f;

  typename Format::Numbers numbers;
  const auto integers = quantised_group(v, inside, numbers);
  constexpr int kBytes = sizeof(integers);  // of a lane
  std::byte* const row = const_cast<std::byte*>(out.data) + n * out.stride;
  const int at = k / kEach * kBytes;
  // A last group may end before its 128th.
  if (at < out.numbers) *reinterpret_cast<std::remove_const_t<decltype(integers)>*>(row + at) = integers;
  if (threadIdx.x % kWarp == 0) {
    reinterpret_cast<typename Format::Numbers*>(row + out.numbers)[group] = numbers;
  }
}

/// A thread per piece, one row behind the other.
template <WeightFormat kFormat>
__global__ void dequantise_kernel(const QuantMatrix from, const Matrix out) {
  start_next();
  const auto across = static_cast<std::uint32_t>(out.stride / kQuantPiece);
  const std::uint32_t at = blockIdx.x * kBlock + threadIdx.x, n = at / across;
  const int k = static_cast<int>(at % across) * kQuantPiece;
  uint4 both[2] = {};
  const int inside = n < from.rows ? static_cast<int>(from.columns) - k : 0;
  if (inside > 0) {
    weights_at<kFormat>(from.data + n * from.stride, from.numbers, k, both);
  }
  if (inside < kQuantPiece) {
    auto* const weights = reinterpret_cast<__nv_bfloat16*>(both);
#pragma unroll
    for (int e = 0; e < kQuantPiece; ++e) {
      if (e >= inside) weights[e] = from_float<__nv_bfloat16>(0.0f);
    }
  }
  wait_for_inputs();  // those before may still read what is written here
  if (n >= from.rows) return;
  auto* const to = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(out.data) + n * out.stride + k);
  to[0] = both[0];
  to[1] = both[1];
}

template <WeightFormat kFormat>
__global__ void embed_kernel(const Embed a, const QuantMatrix token) {
  start_next();
  wait_for_inputs();
  const std::int64_t row = blockIdx.x;
  const std::byte* const from = token.data + a.ids[row] * token.stride;
  const float* const position =
      static_cast<const float*>(a.position.data) + a.positions[row] * a.position.stride;
  float* const out = static_cast<float*>(a.out.data) + row * a.out.stride;
  for (int k = static_cast<int>(threadIdx.x) * kQuantPiece; k < a.out.columns; k += kBlock * kQuantPiece) {
    uint4 both[2];
    weights_at<kFormat>(from, token.numbers, k, both);
    const auto* const weights = reinterpret_cast<const __nv_bfloat16*>(both);
#pragma unroll
    for (int e = 0; e < kQuantPiece; ++e) {
      if (k + e < a.out.columns) out[k + e] = to_float(weights[e]) + position[k + e];
    }
  }
}

}  // namespace

cudaError_t quantise(const MatrixSource& source, const QuantMatrix& out, cudaStream_t stream) {
  return with_quantised(out.format, [&](auto format) {
    return with_type(source.dtype, [&](auto in) {
      constexpr WeightFormat kFormat = decltype(format)::value;
      const dim3 grid(blocks_for(source.n, 1), blocks_for(source.k, Quantised<kFormat>::kGroup * kWarps));
      return launch(quantise_kernel<decltype(in), kFormat>, grid, kBlock, 0, stream, source, out);
    });
  });
}

cudaError_t dequantise(const QuantMatrix& from, const Matrix& out, cudaStream_t stream) {
  return with_quantised(from.format, [&](auto format) {
    const unsigned grid = blocks_for(from.rows * (out.stride / kQuantPiece), kBlock);
    return launch_chained(dequantise_kernel<decltype(format)::value>, grid, kBlock, 0, stream, from, out);
  });
}

cudaError_t embed_quantised(const Embed& args, const QuantMatrix& token, cudaStream_t stream) {
  return with_quantised(token.format, [&](auto format) {
    return launch_chained(embed_kernel<decltype(format)::value>, blocks_for(args.out.rows, 1), kBlock, 0,
                          stream, args, token);
  });
}

}  // namespace inkling::cuda
