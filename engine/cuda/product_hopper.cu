// Products of training by wgmma and the tensor copy engine. The floor is the matrix units' rate.
//
// One block per processor stays for the whole product. One warp brings steps of both operands, 64 deep and
// swizzled, into a ring of stages and runs ahead into the next tile while two warpgroups finish the last one
// from their registers, 64 rows × 256 columns each. Either operand may lie along the sum or across it: wgmma
// reads both. Where whole tiles would leave processors idle, k is cut into a few runs ("split-K"): their sums
// go to a workspace, and a second kernel adds them in the order of k. Cuts follow from the shape, so bits do.
#include <algorithm>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/cuda.h"
#include "engine/cuda/element.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/product.h"
#include "engine/cuda/tensor_map.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {
namespace {

using T = __nv_bfloat16;

constexpr int kRows = 128, kColumns = 256, kDepth = 64, kStages = 4;
constexpr int kGroups = 2, kConsumers = 128 * kGroups, kThreads = kConsumers + 128;
constexpr int kSums = kColumns / 2;  // a thread's
constexpr int kBytesA = kRows * kDepth * 2, kBytesB = kColumns * kDepth * 2, kStage = kBytesA + kBytesB;
constexpr int kHalf = kDepth * 128;  // bytes of 64 steps of k by 64 rows or columns
constexpr int kFewRegisters = 40, kManyRegisters = 232;
constexpr std::int64_t kPart = std::int64_t{kRows} * kColumns;
constexpr int kMostParts = static_cast<int>(kProductWorkspace / (kPart * sizeof(float)));

/// Tiles in an order that lets those that run side by side share rows and columns: `kTogether` rows of tiles
/// at a time, down each column of them.
struct Tiling {
  static constexpr int kTogether = 16;
  int rows, columns;  // tiles

  __host__ __device__ int count() const { return rows * columns; }
  __device__ void place(int tile, int& row, int& column) const {
    const int band = tile / (kTogether * columns), first = band * kTogether;
    const int deep = min(kTogether, rows - first), inside = tile - first * columns;
    row = (first + inside % deep) * kRows;
    column = inside / deep * kColumns;
  }
};

/// The steps [begin, end) of k of one tile.
struct Piece {
  int tile, begin, end;
};

/// All pieces: every tile's first run of k, then every tile's second, so that blocks side by side read the
/// same rows at the same time. Block u takes piece u, u + blocks, …
struct Work {
  Tiling tiling;
  int steps, runs;
  float* parts;  // (pieces, a thread's sums, threads); unused when there is one run

  __host__ __device__ int pieces() const { return tiling.count() * runs; }
  __device__ Piece piece(int index) const {
    const int run = index / tiling.count();
    return {index % tiling.count(), steps * run / runs, steps * (run + 1) / runs};
  }
  __device__ float* part(int index) const { return parts + index * kPart + threadIdx.x; }
};

/// Two neighbours of a row.
__device__ inline float2 read2(const Matrix& from, std::int64_t row, int column, bool whole) {
  const float* const at = static_cast<const float*>(from.data) + row * from.stride + column;
  if (whole) return *reinterpret_cast<const float2*>(at);
  const bool inside = row < from.rows;
  return make_float2(inside && column < from.columns ? at[0] : 0.0f,
                     inside && column + 1 < from.columns ? at[1] : 0.0f);
}

/// Writes a lane's neighbours (column, column + 1) of two blocks of eight columns side by side. f32: the four
/// lanes of a row fill a sector each time. 16 bits: odd and even lanes swap, so that they do too.
__device__ inline void write_pairs(const Matrix& to, std::int64_t row, int column, const float2 (&v)[2],
                                   bool whole) {
  if (to.dtype == DType::f32) {
    float* const at = static_cast<float*>(to.data) + row * to.stride + column;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      if (whole) {
        *reinterpret_cast<float2*>(at + 8 * b) = v[b];
      } else if (row < to.rows) {
        if (column + 8 * b < to.columns) at[8 * b] = v[b].x;
        if (column + 8 * b + 1 < to.columns) at[8 * b + 1] = v[b].y;
      }
    }
    return;
  }
  const bool odd = threadIdx.x % 2 != 0;
  const std::uint32_t left = pack2<T>(v[0].x, v[0].y), right = pack2<T>(v[1].x, v[1].y);
  const std::uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
  const uint2 four = odd ? make_uint2(got, right) : make_uint2(left, got);
  const int first = odd ? column + 6 : column;  // of four neighbours
  T* const at = static_cast<T*>(to.data) + row * to.stride + first;
  if (whole) {
    *reinterpret_cast<uint2*>(at) = four;
  } else if (row < to.rows) {
    const T* const each = reinterpret_cast<const T*>(&four);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (first + e < to.columns) at[e] = each[e];
    }
  }
}

constexpr int kQuarters = 4, kQuarter = kSums / kQuarters;  // a thread's sums of 64 columns

/// What follows the sums of 64 columns of a tile. A lane has two neighbours of rows g and g + 8 in each
/// block of eight columns.
template <Activation kActivation, bool kWhole>
__device__ inline void finish_quarter(const Product& p, int row, int column, const float* c) {
  const int lane = threadIdx.x % kWarp;
  const std::int64_t first = row + static_cast<int>(threadIdx.x) / kWarp * 16 + lane / 4;
  column += lane % 4 * 2;
  // All that is read is asked for at once.
  float2 add[8][2] = {}, shift[8] = {};
  if (p.bias != nullptr) {
    Matrix bias;  // as a matrix whose rows are all the same
    bias.data = const_cast<float*>(p.bias);
    bias.rows = 1, bias.columns = p.out.columns;
#pragma unroll
    for (int j = 0; j < 8; ++j) shift[j] = read2(bias, 0, column + j * 8, kWhole);
  }
  if (p.residual.data != nullptr) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      add[i / 2][i % 2] = read2(p.residual, first + i % 2 * 8, column + i / 2 * 8, kWhole);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 v[2];
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        v[b].x = c[(j + b) * 4 + half * 2] + shift[j + b].x;
        v[b].y = c[(j + b) * 4 + half * 2 + 1] + shift[j + b].y;
      }
      const std::int64_t r = first + half * 8;
      if (p.pre_activation.data != nullptr) write_pairs(p.pre_activation, r, column + j * 8, v, kWhole);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        v[b].x = activated(kActivation, v[b].x) + add[j + b][half].x;
        v[b].y = activated(kActivation, v[b].y) + add[j + b][half].y;
      }
      write_pairs(p.out, r, column + j * 8, v, kWhole);
    }
  }
}

__device__ inline bool in_pairs(const Matrix& m) {
  return m.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(m.data) % 8 == 0;
}

/// kCount quarters of a tile from `quarter` on; those inside the output take no branch per element.
template <int kCount>
__device__ inline void finish(const Product& p, int row, int column, const float (&c)[kCount * kQuarter]) {
  const bool whole = row + kRows <= p.out.rows && column + kCount * 64 <= p.out.columns && in_pairs(p.out) &&
                     in_pairs(p.residual) && in_pairs(p.pre_activation) &&
                     reinterpret_cast<std::uintptr_t>(p.bias) % 8 == 0;
  with_activation(p.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    if (whole) {
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        finish_quarter<kActivation, true>(p, row, column + q * 64, c + q * kQuarter);
      }
    } else {
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        finish_quarter<kActivation, false>(p, row, column + q * 64, c + q * kQuarter);
      }
    }
  });
}

/// The ring of stages, which goes on from piece to piece.
struct Ring {
  unsigned char* memory;
  std::uint64_t *full, *empty;

  __device__ unsigned char* a(int i) const { return memory + i % kStages * kStage; }
  __device__ unsigned char* b(int i) const { return a(i) + kBytesA; }
  __device__ std::uint64_t* full_of(int i) const { return full + i % kStages; }
  __device__ std::uint64_t* empty_of(int i) const { return empty + i % kStages; }
  __device__ static int turn(int i) { return i / kStages & 1; }
};

/// One thread: brings every step of every piece.
template <bool kByKA, bool kByKB>
__device__ inline void produce(const Work& work, const Ring& ring, const CUtensorMap& a_map,
                               const CUtensorMap& b_map) {
  int i = 0;
  for (int index = blockIdx.x; index < work.pieces(); index += gridDim.x) {
    const Piece piece = work.piece(index);
    int row, column;
    work.tiling.place(piece.tile, row, column);
    for (int step = piece.begin; step < piece.end; ++step, ++i) {
      if (i >= kStages) barrier_wait(ring.empty_of(i), ring.turn(i) ^ 1);
      std::uint64_t* const full = ring.full_of(i);
      barrier_expect(full, kStage);
      const int k = step * kDepth;
      if constexpr (kByKA) {
        for (int h = 0; h < kRows / 64; ++h)
          copy_box(ring.a(i) + h * kHalf, &a_map, full, row + h * 64, 0, k);
      } else {
        copy_box(ring.a(i), &a_map, full, k, 0, row);
      }
      if constexpr (kByKB) {
        for (int h = 0; h < kColumns / 64; ++h) {
          copy_box(ring.b(i) + h * kHalf, &b_map, full, column + h * 64, 0, k);
        }
      } else {
        copy_box(ring.b(i), &b_map, full, k, 0, column);
      }
    }
  }
}

template <bool kByKA, bool kByKB>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ Product p, const __grid_constant__ Work work,
                   const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ std::uint64_t barriers[2 * kStages];
  const Ring ring{memory, barriers, barriers + kStages};
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0), lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, kConsumers / kWarp);
    }
    fence_async();
  }
  __syncthreads();
  start_next();
  wait_for_inputs();

  if (warp >= kConsumers / kWarp) {
    give_registers<kFewRegisters>();
    if (warp == kConsumers / kWarp && lane == 0) produce<kByKA, kByKB>(work, ring, a_map, b_map);
    return;
  }
  take_registers<kManyRegisters>();
  const int group = warp / 4;
  const auto release = [&](int i) {
    if (lane == 0) barrier_arrive(ring.empty_of(i));
  };
  int i = 0;
  for (int index = blockIdx.x; index < work.pieces(); index += gridDim.x) {
    const Piece piece = work.piece(index);
    float c[kSums];
    hold(c);
    for (int step = piece.begin; step < piece.end; ++step, ++i) {
      barrier_wait(ring.full_of(i), ring.turn(i));
      const std::uint32_t a = matrix_low(ring.a(i) + group * 64 * 128, 16),  // 64 rows or 64 columns alike
          b = matrix_low(ring.b(i), kByKB ? kHalf : 16);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        wgmma<T, 128, kByKB ? 1 : 0, kByKA ? 1 : 0>(c, a + k * (kByKA ? 2048 : 32) / 16,
                                                    b + k * (kByKB ? 2048 : 32) / 16,
                                                    step > piece.begin || k > 0);
      }
      wgmma_commit();
      if (step > piece.begin) {
        wgmma_wait<1>();
        release(i - 1);
      }
    }
    wgmma_wait<0>();
    hold(c);
    release(i - 1);
    if (work.runs > 1) {
      float* const part = work.part(index);
#pragma unroll
      for (int e = 0; e < kSums; ++e) part[e * kConsumers] = c[e];
      continue;
    }
    int row, column;
    work.tiling.place(piece.tile, row, column);
    finish<kQuarters>(p, row, column, c);
  }
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

/// A block per quarter of a tile: adds the sums of its runs, in the order of k.
__global__ void __launch_bounds__(kConsumers)
    add_runs_kernel(const __grid_constant__ Product p, const __grid_constant__ Work work) {
  start_next();
  wait_for_inputs();
  const int tile = static_cast<int>(blockIdx.x), quarter = static_cast<int>(blockIdx.y);
  float c[kQuarter] = {};
  for (int run = 0; run < work.runs; ++run) {
    const float* const part = work.part(run * work.tiling.count() + tile) + quarter * kQuarter * kConsumers;
#pragma unroll
    for (int e = 0; e < kQuarter; ++e) c[e] += part[e * kConsumers];
  }
  int row, column;
  work.tiling.place(tile, row, column);
  finish<1>(p, row, column + quarter * 64, c);
}

/// Into how many runs k is cut: the least time by what was measured on an H200, in µs: a step of a tile, and
/// a run's way through the workspace.
int runs_of(int tiles, int steps, int processors) {
  constexpr double kStep = 0.85, kPartTime = 0.06;
  int best = 1;
  double least = 0.0;
  for (int runs = 1; runs == 1 || (tiles * runs <= kMostParts && steps / runs >= 8); ++runs) {
    const int rounds = (tiles * runs + processors - 1) / processors;
    const double time =
        rounds * ((steps + runs - 1) / runs) * kStep + (runs > 1 ? 5 + tiles * runs * kPartTime : 0);
    if (runs == 1 || time < least) best = runs, least = time;
  }
  return best;
}

/// Boxes of one operand: rows of 64 steps of k, or 64 steps of k by 64 rows.
cudaError_t encode(EncodeTiled encode, CUtensorMap& map, const Matrix& m, bool by_k, int extent) {
  return encode_rows(encode, map, {m.data, m.dtype, m.stride, m.stride, m.rows, 1, m.columns},
                     by_k ? kDepth : extent, 64);
}

template <bool kByKA, bool kByKB>
cudaError_t run(const Product& p, float* workspace, int processors, cudaStream_t stream) {
  EncodeTiled encoder = nullptr;
  CUtensorMap a_map, b_map;
  cudaError_t error = find_encoder(encoder);
  if (error == cudaSuccess) error = encode(encoder, a_map, p.a, kByKA, kRows);
  if (error == cudaSuccess) error = encode(encoder, b_map, p.b, kByKB, kColumns);
  if (error != cudaSuccess) return error;
  const auto ceil = [](std::int64_t n, int per) { return static_cast<int>((n + per - 1) / per); };
  Work work;
  work.tiling = {ceil(p.out.rows, kRows), ceil(p.out.columns, kColumns)};
  work.steps = ceil(kByKA ? p.a.rows : p.a.columns, kDepth);
  work.parts = workspace;
  const int tiles = work.tiling.count();
  work.runs = runs_of(tiles, work.steps, processors);
  error =
      launch_chained(product_kernel<kByKA, kByKB>, static_cast<unsigned>(std::min(work.pieces(), processors)),
                     kThreads, kStage * kStages, stream, p, work, a_map, b_map);
  if (error != cudaSuccess || work.runs == 1) return error;
  return launch_chained(add_runs_kernel, dim3(static_cast<unsigned>(tiles), kQuarters), kConsumers, 0, stream,
                        p, work);
}

bool copies(const Matrix& m) {
  return m.dtype == DType::bf16 && in_pieces(m);
}

}  // namespace

bool takes_product(const Product& p) {
  int device = 0;
  if (p.slope_at.data != nullptr || !copies(p.a) || !copies(p.b) || cudaGetDevice(&device) != cudaSuccess)
    return false;
  return cuda_hopper_refusal(device).empty();
}

cudaError_t product(const Product& p, float* workspace, cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  if (p.a_by_k) {
    return p.b_by_k ? run<true, true>(p, workspace, processors, stream)
                    : run<true, false>(p, workspace, processors, stream);
  }
  return p.b_by_k ? run<false, true>(p, workspace, processors, stream)
                  : run<false, false>(p, workspace, processors, stream);
}

}  // namespace inkling::cuda
