// The choice of a linear kernel, and those by mma.sync: out (M × N) = x (M × K) · weightᵀ, weight (N × K).
//
// A block takes a tile of kRows × kColumns outputs and walks k in steps of 128 bytes, kStages − 1 of them in
// flight (cp.async). k is cut into four runs; each is one chain of the same matrix instructions from zero,
// and the four sums are added in order, whatever the tile: its shape is a matter of speed and not of bits, so
// a row's result does not depend on M. f32 goes through three tf32 products (mma.cuh), exact to 2⁻²². Floors:
// decode reads each weight once, many rows the matrix units' rate. Oracle: tests/engine/cuda.cpp against the
// CPU's reference. Measured: engine/cuda/README.md.
#include "engine/cuda/linear_few.h"
#include "engine/cuda/linear_hopper.h"
#include "engine/cuda/linear_tile.cuh"
#include "engine/cuda/linear_wide.h"

namespace inkling::cuda {
namespace {

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
  const int warp = threadIdx.x / kWarp;
  const int warp_row = warp / kWarpsN * kTilesM * 16, warp_column = warp % kWarpsN * kTilesN * 8;

  const Fetch<Tile, Tile::kRows, kThreads> fetch_x(a.x, row, threadIdx.x);
  const Fetch<Tile, Tile::kColumns, kThreads> fetch_w(a.weight, column, threadIdx.x);
  const auto tile_of = [&](int step) { return shared + step % Tile::kStages * Tile::kStage; };
  const auto begin_x = [&](int step) {
    if (step < steps) fetch_x(tile_of(step), step * Tile::kDepth);
    copy_commit();
  };
  const auto begin_w = [&](int step) {
    if (step < steps) fetch_w(tile_of(step) + Tile::kRows * Tile::kStride, step * Tile::kDepth);
  };
  start_next();
  for (int step = 0; step < Tile::kStages - 1; ++step) begin_w(step);
  wait_for_inputs();
  for (int step = 0; step < Tile::kStages - 1; ++step) begin_x(step);  // the first waits for all of w, too

  float c[kTilesM][kTilesN][4] = {}, total[kTilesM][kTilesN][4] = {};
  for (int r = 0, step = 0; r < kRuns; ++r) {
    for (const int end = run_of(r, steps).end; step < end; ++step) {
      copy_wait<Tile::kStages - 2>();
      __syncthreads();
      begin_w(step + Tile::kStages - 1);
      begin_x(step + Tile::kStages - 1);
      const T* x = tile_of(step);
      multiply_step<Tile>(c, x, warp_row, x + Tile::kRows * Tile::kStride, warp_column);
    }
#pragma unroll
    for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total[i][j][e] += c[i][j][e];
          c[i][j][e] = 0.0f;
        }
      }
    }
  }
  copy_wait<0>();
  __syncthreads();  // the tiles have been read: their memory takes the sums
  float* const sums = reinterpret_cast<float*>(memory);
  put_sums<Tile>(sums, total, warp_row, warp_column);
  __syncthreads();
  finish_tile<Tile, kThreads, Tile::kRows>(a, row, column, [&](float(&v)[4], int r, int c) {
    add_parts<1, Tile::kRows, Tile::kSumStride>(v, sums, r, c);
  });
}

/// Few rows: each warp of a block takes one run of the same tile on its own, so that a chain is a quarter as
/// long and nothing waits for other warps before the end.
template <class Tile>
__global__ void __launch_bounds__(kRuns* kWarp) few_rows_kernel(const Linear a) {
  using T = typename Tile::Element;
  constexpr int kTilesM = Tile::kRows / 16, kTilesN = Tile::kColumns / 8;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  T* const shared = reinterpret_cast<T*>(memory) + warp * Tile::kStages * Tile::kStage;
  const std::int64_t row = std::int64_t{blockIdx.x} * Tile::kRows,
                     column = std::int64_t{blockIdx.y} * Tile::kColumns;
  const Run run = run_of(warp, static_cast<int>((a.weight.columns + Tile::kDepth - 1) / Tile::kDepth));

  const Fetch<Tile, Tile::kRows, kWarp> fetch_x(a.x, row, lane);
  const Fetch<Tile, Tile::kColumns, kWarp> fetch_w(a.weight, column, lane);
  const auto tile_of = [&](int step) { return shared + (step - run.begin) % Tile::kStages * Tile::kStage; };
  const auto begin_w = [&](int step) {
    if (step < run.end) fetch_w(tile_of(step) + Tile::kRows * Tile::kStride, step * Tile::kDepth);
  };
  const auto begin_x = [&](int step) {
    if (step < run.end) fetch_x(tile_of(step), step * Tile::kDepth);
    copy_commit();
  };
  start_next();
  for (int i = 0; i < Tile::kStages - 1; ++i) begin_w(run.begin + i);
  wait_for_inputs();
  for (int i = 0; i < Tile::kStages - 1; ++i) begin_x(run.begin + i);  // the first waits for all of w, too
  float c[kTilesM][kTilesN][4] = {};
  for (int step = run.begin; step < run.end; ++step) {
    copy_wait<Tile::kStages - 2>();
    __syncwarp();
    begin_w(step + Tile::kStages - 1);
    begin_x(step + Tile::kStages - 1);
    const T* x = tile_of(step);
    multiply_step<Tile>(c, x, 0, x + Tile::kRows * Tile::kStride, 0);
  }
  copy_wait<0>();
  __syncthreads();  // the tiles have been read: their memory takes the sums
  float* const sums = reinterpret_cast<float*>(memory);
  put_sums<Tile>(sums + warp * Tile::kRows * Tile::kSumStride, c, 0, 0);
  __syncthreads();
  finish_tile<Tile, kRuns * kWarp, Tile::kRows>(a, row, column, [&](float(&v)[4], int r, int c) {
    add_parts<kRuns, Tile::kRows, Tile::kSumStride>(v, sums, r, c);
  });
}

template <class Tile>
dim3 grid_of(const Linear& a) {
  return {blocks_for(a.out.rows, Tile::kRows), blocks_for(a.out.columns, Tile::kColumns)};
}

template <class Tile>
cudaError_t few_rows(const Linear& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = kRuns * sizeof(typename Tile::Element) * Tile::kStage * Tile::kStages;
  static_assert(kBytes >= kRuns * sizeof(float) * Tile::kRows * Tile::kSumStride);
  return launch_chained(few_rows_kernel<Tile>, Grid(grid_of<Tile>(a), a.start), kRuns * kWarp, kBytes, stream,
                        a);
}

template <class Tile, int kWarpsM, int kWarpsN>
cudaError_t many_rows(const Linear& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(typename Tile::Element) * Tile::kStage * Tile::kStages;
  static_assert(kBytes >= sizeof(float) * Tile::kRows * Tile::kSumStride);
  return launch_chained(many_rows_kernel<Tile, kWarpsM, kWarpsN>, Grid(grid_of<Tile>(a), a.start),
                        kWarpsM * kWarpsN * kWarp, kBytes, stream, a);
}

/// The largest tile that still fills the GPU.
template <class T>
cudaError_t choose(const Linear& a, cudaStream_t stream) {
  constexpr std::int64_t kFull = 128;  // blocks
  const auto tiles = [&](std::int64_t rows, std::int64_t columns) {
    return (a.out.rows + rows - 1) / rows * ((a.out.columns + columns - 1) / columns);
  };
  constexpr int kShort = 2048;  // k whose runs fit four stages; a longer one wants more of it in flight
  if (a.out.rows <= 16) {
    return a.weight.columns < kShort ? few_rows<Tile<T, 16, 16, 4>>(a, stream)
                                     : few_rows<Tile<T, 16, 16, 8>>(a, stream);
  }
  // A wide head: enough tiles of 128 columns to fill the GPU, and x is read less often.
  constexpr bool kLarge = sizeof(T) == 2;  // in f32 the registers of large tiles would spill
  if constexpr (kLarge) {
    if (a.out.rows <= 64 && tiles(64, 128) >= kFull) return many_rows<Tile<T, 64, 128, 3>, 2, 4>(a, stream);
  }
  if (a.out.rows <= 64) return few_rows<Tile<T, 64, 16, 3>>(a, stream);
  if constexpr (kLarge) {
    if (tiles(128, 128) >= kFull) return many_rows<Tile<T, 128, 128, 3>, 2, 4>(a, stream);
  }
  return many_rows<Tile<T, 64, 64, 4>, 2, 2>(a, stream);
}

}  // namespace

bool norms_inside(const Linear& args) {
  constexpr std::int64_t kFew = 8;  // rows; with more a norm of its own and wgmma are faster
  if (!takes_few(args)) return false;
  Linear normed = args;
  normed.norm = {};
  normed.rows = nullptr;
  normed.x.dtype = args.weight.dtype;
  return args.out.rows <= kFew || !takes_hopper(normed);
}

cudaError_t linear(const Linear& args, cudaStream_t stream) {
  if (takes_wide(args)) return linear_wide(args, stream);
  if (norms_inside(args)) return linear_few(args, stream);
  if (takes_hopper(args)) return linear_hopper(args, stream);
  return with_type(args.weight.dtype, [&](auto type) { return choose<decltype(type)>(args, stream); });
}

}  // namespace inkling::cuda
