// Linear layers by mma.sync: out (M × N) = x (M × K) · weightᵀ, weight (N × K).
//
// A block takes a tile of kRows × kColumns outputs and walks k in steps of 128 bytes, kStages − 1 of them in
// flight (cp.async). k is cut into four runs; each is one chain of the same matrix instructions from zero,
// and the four sums are added in order, whatever the tile: its shape is a matter of speed and not of bits, so
// a row's result does not depend on M. f32 goes through three tf32 products (mma.cuh), exact to 2⁻²². Decode
// reads each weight once: bytes over bandwidth is its floor; large M is bound by mma.sync's rate, some 60 %
// of wgmma's on Hopper. Oracle: tests/engine/cuda.cpp against the CPU's reference.
#include <algorithm>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"

namespace inkling::cuda {
namespace {

// k is cut into this many runs of whole steps.
constexpr int kRuns = 4;

/// The steps [begin, end) of run r.
struct Run {
  int begin, end;
};
__device__ inline Run run_of(int r, int steps) {
  return {r * steps / kRuns, (r + 1) * steps / kRuns};
}

template <class T, int kM, int kN, int kInFlight>
struct Tile {
  using Element = T;
  static constexpr int kRows = kM, kColumns = kN, kStages = kInFlight;
  static constexpr int kDepth = 128 / static_cast<int>(sizeof(T));  // k of a step
  static constexpr int kStride = kDepth + Mma<T>::kPad;
  static constexpr int kStage = (kM + kN) * kStride;  // elements
};

/// `count` rows of `from`, 128 bytes of each from element k on, into a tile; zeros beyond the matrix. Called
/// by kThreads threads.
template <class Tile, int kCount, int kThreads>
__device__ inline void fetch(typename Tile::Element* tile, const Matrix& from, std::int64_t first, int k,
                             int thread) {
  using T = typename Tile::Element;
  constexpr int kPieces = 8, kPer = 16 / sizeof(T);
  const auto* data = static_cast<const T*>(from.data);
#pragma unroll
  for (int i = thread; i < kCount * kPieces; i += kThreads) {
    const int row = i / kPieces, column = i % kPieces * kPer;
    const std::int64_t left = first + row < from.rows ? from.columns - k - column : 0;
    const int bytes = static_cast<int>(min(max(left, std::int64_t{0}), std::int64_t{kPer}) * sizeof(T));
    const T* at = bytes > 0 ? data + (first + row) * from.stride + k + column : data;
    copy16_async(tile + row * Tile::kStride + column, at, bytes);
  }
}

/// c += one step of x (16·kTilesM rows from x on) · w (8·kTilesN columns from w on).
template <class Tile, int kTilesM, int kTilesN>
__device__ inline void multiply_step(float (&c)[kTilesM][kTilesN][4], const typename Tile::Element* x,
                                     int row, const typename Tile::Element* w, int column) {
  using T = typename Tile::Element;
#pragma unroll
  for (int k = 0; k < Tile::kDepth; k += Mma<T>::kK) {
    typename Mma<T>::A left[kTilesM];
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) Mma<T>::load_a(left[i], x, Tile::kStride, row + 16 * i, k);
#pragma unroll
    for (int j = 0; j < kTilesN; j += 2) {
      typename Mma<T>::B right[2];
      Mma<T>::load_b_rows(right, w, Tile::kStride, column + 8 * j, k);
#pragma unroll
      for (int i = 0; i < kTilesM; ++i) {
        Mma<T>::multiply(c[i][j], left[i], right[0]);
        Mma<T>::multiply(c[i][j + 1], left[i], right[1]);
      }
    }
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
  if (a.residual.data != nullptr)
    value += static_cast<const float*>(a.residual.data)[m * a.residual.stride + n];
  if (a.out.dtype == DType::f32) {
    static_cast<float*>(a.out.data)[m * a.out.stride + n] = value;
  } else {
    static_cast<T*>(a.out.data)[m * a.out.stride + n] = from_float<T>(value);
  }
}

/// Many rows: the warps of a block share a tile of x and of w, and each takes all runs, one after the other.
template <class Tile, int kWarpsM, int kWarpsN>
__global__ void __launch_bounds__(kWarpsM* kWarpsN* kWarp) many_rows_kernel(const Linear a) {
  using T = typename Tile::Element;
  constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  constexpr int kTilesM = Tile::kRows / kWarpsM / 16, kTilesN = Tile::kColumns / kWarpsN / 8;
  extern __shared__ __align__(16) unsigned char memory[];
  T* const shared = reinterpret_cast<T*>(memory);
  // Blocks that share columns of the weight run next to each other.
  const std::int64_t row = std::int64_t{blockIdx.x} * Tile::kRows,
                     column = std::int64_t{blockIdx.y} * Tile::kColumns;
  const int steps = static_cast<int>((a.weight.columns + Tile::kDepth - 1) / Tile::kDepth);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_row = warp / kWarpsN * kTilesM * 16, warp_column = warp % kWarpsN * kTilesN * 8;

  const auto begin = [&](int step) {
    if (step < steps) {
      T* tile = shared + step % Tile::kStages * Tile::kStage;
      fetch<Tile, Tile::kRows, kThreads>(tile, a.x, row, step * Tile::kDepth, threadIdx.x);
      fetch<Tile, Tile::kColumns, kThreads>(tile + Tile::kRows * Tile::kStride, a.weight, column,
                                            step * Tile::kDepth, threadIdx.x);
    }
    copy_commit();
  };
  for (int step = 0; step < Tile::kStages - 1; ++step) begin(step);

  float c[kTilesM][kTilesN][4] = {}, total[kTilesM][kTilesN][4] = {};
  for (int r = 0, step = 0; r < kRuns; ++r) {
    for (const int end = run_of(r, steps).end; step < end; ++step) {
      copy_wait<Tile::kStages - 2>();
      __syncthreads();
      begin(step + Tile::kStages - 1);
      const T* x = shared + step % Tile::kStages * Tile::kStage;
      multiply_step<Tile>(c, x, warp_row, x + Tile::kRows * Tile::kStride, warp_column);
    }
#pragma unroll
    for (int i = 0; i < kTilesM * kTilesN * 4; ++i) {
      float& value = c[i / 4 / kTilesN][i / 4 % kTilesN][i % 4];
      total[i / 4 / kTilesN][i / 4 % kTilesN][i % 4] += value;
      value = 0.0f;
    }
  }
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        finish<T>(a, row + warp_row + 16 * i + g + e / 2 * 8, column + warp_column + 8 * j + 2 * t + e % 2,
                  total[i][j][e]);
      }
    }
  }
}

/// Few rows: each warp of a block takes one run of the same tile on its own, so that a chain is a quarter as
/// long and nothing waits for other warps before the end.
template <class Tile>
__global__ void __launch_bounds__(kRuns* kWarp) few_rows_kernel(const Linear a) {
  using T = typename Tile::Element;
  constexpr int kTilesM = Tile::kRows / 16, kTilesN = Tile::kColumns / 8,
                kOutputs = Tile::kRows * Tile::kColumns;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  T* const shared = reinterpret_cast<T*>(memory) + warp * Tile::kStages * Tile::kStage;
  const std::int64_t row = std::int64_t{blockIdx.x} * Tile::kRows,
                     column = std::int64_t{blockIdx.y} * Tile::kColumns;
  const Run run = run_of(warp, static_cast<int>((a.weight.columns + Tile::kDepth - 1) / Tile::kDepth));

  const auto begin = [&](int step) {
    if (step < run.end) {
      T* tile = shared + (step - run.begin) % Tile::kStages * Tile::kStage;
      fetch<Tile, Tile::kColumns, kWarp>(tile + Tile::kRows * Tile::kStride, a.weight, column,
                                         step * Tile::kDepth, lane);
      fetch<Tile, Tile::kRows, kWarp>(tile, a.x, row, step * Tile::kDepth, lane);
    }
    copy_commit();
  };
  for (int i = 0; i < Tile::kStages - 1; ++i) begin(run.begin + i);
  float c[kTilesM][kTilesN][4] = {};
  for (int step = run.begin; step < run.end; ++step) {
    copy_wait<Tile::kStages - 2>();
    __syncwarp();
    begin(step + Tile::kStages - 1);
    const T* x = shared + (step - run.begin) % Tile::kStages * Tile::kStage;
    multiply_step<Tile>(c, x, 0, x + Tile::kRows * Tile::kStride, 0);
  }
  copy_wait<0>();
  __syncthreads();  // the tiles have been read: their memory takes the sums
  float* const sums = reinterpret_cast<float*>(memory);
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTilesM * kTilesN * 4; ++i) {
    const int tile = i / 4, m = tile / kTilesN * 16 + g + i % 4 / 2 * 8,
              n = tile % kTilesN * 8 + 2 * t + i % 2;
    sums[warp * kOutputs + m * Tile::kColumns + n] = c[tile / kTilesN][tile % kTilesN][i % 4];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kOutputs; i += kRuns * kWarp) {
    float total = 0.0f;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) total += sums[r * kOutputs + i];
    finish<T>(a, row + i / Tile::kColumns, column + i % Tile::kColumns, total);
  }
}

template <class Kernel>
cudaError_t launch(Kernel* kernel, const Linear& a, int rows, int columns, int threads, std::size_t bytes,
                   cudaStream_t stream) {
  if (bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  const auto blocks = [](std::int64_t n, int per) { return static_cast<unsigned>((n + per - 1) / per); };
  const dim3 grid(blocks(a.out.rows, rows), blocks(a.out.columns, columns));
  kernel<<<grid, threads, bytes, stream>>>(a);
  return cudaGetLastError();
}

template <class Tile>
cudaError_t few_rows(const Linear& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = kRuns * sizeof(typename Tile::Element) * Tile::kStage * Tile::kStages;
  static_assert(kBytes >= kRuns * sizeof(float) * Tile::kRows * Tile::kColumns);
  return launch(few_rows_kernel<Tile>, a, Tile::kRows, Tile::kColumns, kRuns * kWarp, kBytes, stream);
}

template <class Tile, int kWarpsM, int kWarpsN>
cudaError_t many_rows(const Linear& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(typename Tile::Element) * Tile::kStage * Tile::kStages;
  return launch(many_rows_kernel<Tile, kWarpsM, kWarpsN>, a, Tile::kRows, Tile::kColumns,
                kWarpsM * kWarpsN * kWarp, kBytes, stream);
}

/// The largest tile that still fills the GPU.
template <class T>
cudaError_t choose(const Linear& a, cudaStream_t stream) {
  constexpr std::int64_t kFull = 128;  // blocks
  const auto tiles = [&](std::int64_t rows, std::int64_t columns) {
    return (a.out.rows + rows - 1) / rows * ((a.out.columns + columns - 1) / columns);
  };
  if (a.out.rows <= 16) return few_rows<Tile<T, 16, 16, 4>>(a, stream);
  if (a.out.rows <= 64) return few_rows<Tile<T, 64, 16, 3>>(a, stream);
  if constexpr (sizeof(T) == 2) {  // in f32 its registers would spill
    if (tiles(128, 128) >= kFull) return many_rows<Tile<T, 128, 128, 3>, 2, 4>(a, stream);
  }
  return many_rows<Tile<T, 64, 64, 4>, 2, 2>(a, stream);
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
