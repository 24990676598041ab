// Linear layers by mma.sync: out (M × N) = x (M × K) · weightᵀ, weight (N × K).
//
// A block takes a tile of kRows × kColumns outputs and walks k in steps of 128 bytes, kStages of them in flight
// (cp.async). Every output is one chain of the same matrix instructions over k, from zero, whatever the tile:
// the tile shapes below are a matter of speed and not of bits, so a row's result does not depend on M. f32 goes
// through three tf32 products (mma.cuh), exact to 2⁻²². Decode reads each weight once: bytes over bandwidth
// is its floor; large M is bound by mma.sync's rate, some 60 % of wgmma's on Hopper. Oracle:
// tests/engine/cuda.cpp against the CPU's reference.
#include <algorithm>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"

namespace inkling::cuda {
namespace {

template <class T, int kM, int kN, int kWarpsM, int kWarpsN, int kInFlight>
struct Tile {
  using Element = T;
  static constexpr int kRows = kM, kColumns = kN, kStages = kInFlight;
  static constexpr int kDepth = 128 / static_cast<int>(sizeof(T));  // k of a step
  static constexpr int kStride = kDepth + Mma<T>::kPad;
  static constexpr int kWarps = kWarpsM * kWarpsN, kThreads = kWarps * kWarp;
  static constexpr int kWarpRows = kM / kWarpsM, kWarpColumns = kN / kWarpsN, kAcross = kWarpsN;
  static constexpr int kStage = (kM + kN) * kStride;  // elements
  static constexpr std::size_t kBytes = sizeof(T) * kStage * kStages;
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0);
};

/// `count` rows of `from`, 128 bytes of each from element k on, into a tile; zeros beyond the matrix.
template <class Tile, int kCount>
__device__ inline void fetch(typename Tile::Element* tile, const Matrix& from, std::int64_t first, int k) {
  using T = typename Tile::Element;
  constexpr int kPieces = 8, kPer = 16 / sizeof(T);
  const auto* data = static_cast<const T*>(from.data);
#pragma unroll
  for (int i = threadIdx.x; i < kCount * kPieces; i += Tile::kThreads) {
    const int row = i / kPieces, column = i % kPieces * kPer;
    const std::int64_t left = first + row < from.rows ? from.columns - k - column : 0;
    const int bytes = static_cast<int>(min(max(left, std::int64_t{0}), std::int64_t{kPer}) * sizeof(T));
    const T* at = bytes > 0 ? data + (first + row) * from.stride + k + column : data;
    copy16_async(tile + row * Tile::kStride + column, at, bytes);
  }
}

template <class T>
__device__ inline void finish(const Linear& a, std::int64_t m, std::int64_t n, float value) {
  if (m >= a.out.rows || n >= a.out.columns) return;
  if (a.bias != nullptr) value += a.bias[n];
  if (a.pre_activation.data != nullptr) {
    static_cast<float*>(a.pre_activation.data)[m * a.pre_activation.stride + n] = value;
  }
  value = activated(a.activation, value);
  if (a.residual.data != nullptr) value += static_cast<const float*>(a.residual.data)[m * a.residual.stride + n];
  if (a.out.dtype == DType::f32) {
    static_cast<float*>(a.out.data)[m * a.out.stride + n] = value;
  } else {
    static_cast<T*>(a.out.data)[m * a.out.stride + n] = from_float<T>(value);
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) linear_kernel(const Linear a) {
  using T = typename Tile::Element;
  extern __shared__ __align__(16) unsigned char memory[];
  T* const shared = reinterpret_cast<T*>(memory);
  // Blocks that share columns of the weight run next to each other.
  const std::int64_t row = std::int64_t{blockIdx.x} * Tile::kRows, column = std::int64_t{blockIdx.y} * Tile::kColumns;
  const int steps = static_cast<int>((a.weight.columns + Tile::kDepth - 1) / Tile::kDepth);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_row = warp / Tile::kAcross * Tile::kWarpRows, warp_column = warp % Tile::kAcross * Tile::kWarpColumns;

  const auto begin = [&](int step) {
    if (step < steps) {
      T* tile = shared + step % Tile::kStages * Tile::kStage;
      fetch<Tile, Tile::kRows>(tile, a.x, row, step * Tile::kDepth);
      fetch<Tile, Tile::kColumns>(tile + Tile::kRows * Tile::kStride, a.weight, column, step * Tile::kDepth);
    }
    copy_commit();
  };
  for (int step = 0; step < Tile::kStages - 1; ++step) begin(step);

  constexpr int kTilesM = Tile::kWarpRows / 16, kTilesN = Tile::kWarpColumns / 8;
  float c[kTilesM][kTilesN][4] = {};
  for (int step = 0; step < steps; ++step) {
    copy_wait<Tile::kStages - 2>();
    __syncthreads();
    begin(step + Tile::kStages - 1);
    const T* x = shared + step % Tile::kStages * Tile::kStage;
    const T* w = x + Tile::kRows * Tile::kStride;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += Mma<T>::kK) {
      typename Mma<T>::A left[kTilesM];
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) Mma<T>::load_a(left[i], x, Tile::kStride, warp_row + 16 * i, k);
#pragma unroll
      for (int j = 0; j < kTilesN; j += 2) {
        typename Mma<T>::B right[2];
        Mma<T>::load_b_rows(right, w, Tile::kStride, warp_column + 8 * j, k);
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
          Mma<T>::multiply(c[i][j], left[i], right[0]);
          Mma<T>::multiply(c[i][j + 1], left[i], right[1]);
        }
      }
    }
  }
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        finish<T>(a, row + warp_row + 16 * i + g + e / 2 * 8, column + warp_column + 8 * j + 2 * t + e % 2, c[i][j][e]);
      }
    }
  }
}

template <class Tile>
cudaError_t launch(const Linear& a, cudaStream_t stream) {
  const auto kernel = linear_kernel<Tile>;
  if (Tile::kBytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(Tile::kBytes));
    if (error != cudaSuccess) return error;
  }
  const auto blocks = [](std::int64_t n, int per) { return static_cast<unsigned>((n + per - 1) / per); };
  const dim3 grid(blocks(a.out.rows, Tile::kRows), blocks(a.out.columns, Tile::kColumns));
  kernel<<<grid, Tile::kThreads, Tile::kBytes, stream>>>(a);
  return cudaGetLastError();
}

/// The largest tile that still fills the GPU.
template <class T>
cudaError_t choose(const Linear& a, cudaStream_t stream) {
  constexpr std::int64_t kFull = 128;  // blocks
  const auto tiles = [&](std::int64_t rows, std::int64_t columns) {
    return (a.out.rows + rows - 1) / rows * ((a.out.columns + columns - 1) / columns);
  };
  if (a.out.rows <= 16) return launch<Tile<T, 16, 16, 1, 1, 8>>(a, stream);
  if (a.out.rows <= 64) return launch<Tile<T, 64, 16, 4, 1, 6>>(a, stream);
  if (tiles(128, 128) >= kFull) return launch<Tile<T, 128, 128, 2, 4, 3>>(a, stream);
  return launch<Tile<T, 64, 64, 2, 2, 4>>(a, stream);
}

}  // namespace

cudaError_t linear(const Linear& args, cudaStream_t stream) {
  switch (args.weight.dtype) {
    case DType::bf16:
      return choose<__nv_bfloat16>(args, stream);
    case DType::f16:
      return choose<__half>(args, stream);
    default:
      return choose<float>(args, stream);
  }
}

}  // namespace inkling::cuda
