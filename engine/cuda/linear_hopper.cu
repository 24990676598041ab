// Linear layers by wgmma and the tensor copy engine: the floor is the matrix units' rate for many rows, the
// reading of the weight for a few dozen.
//
// A block takes a tile of outputs. One warp brings steps of x and of the weight, 64 deep and swizzled,
// into a ring of stages, the weight's first ones before it waits for the kernel that makes x (chain.cuh);
// each other warpgroup multiplies 64 rows. The four runs of k (linear_tile.cuh) are taken one after the
// other, or by the four blocks of a cluster, which then read each other's sums and add them in the same
// order.
#include "engine/cuda/linear_hopper.h"

#include <utility>

#include "engine/cuda/cuda.h"
#include "engine/cuda/hopper_tiles.h"
#include "engine/cuda/linear_tile.cuh"
#include "engine/cuda/tensor_map.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {
namespace {

/// Of kHopperTiles[kIndex].
template <class T, std::size_t kIndex>
struct HopperTile {
  using Element = T;
  static constexpr HopperTileShape kShape = kHopperTiles[kIndex];
  static constexpr int kRows = kShape.rows(), kColumns = kShape.columns, kStages = kShape.stages;
  static constexpr int kSplits = kShape.splits;
  static constexpr int kDepth = 64, kRowBytes = 128;
  static constexpr int kConsumers = 128 * kShape.groups, kThreads = kConsumers + 128;
  // Registers of a thread that brings and of one that multiplies, where the even share is too few.
  static constexpr bool kUneven = kColumns > 128;
  static constexpr int kFewRegisters = 40, kManyRegisters = 232;
  static constexpr int kStage = kShape.stage_bytes(), kBytes = kShape.bytes();
  static constexpr int kSumStride = kColumns + 8;  // floats between rows of sums
  static_assert(kRows * kSumStride * static_cast<int>(sizeof(float)) <= kBytes);
  static_assert(kRuns % kSplits == 0 && kRows % kSplits == 0);
};

/// The stages of a block and who may use them.
template <class Tile>
struct StageRing {
  unsigned char* memory;
  std::uint64_t *full, *empty;

  __device__ unsigned char* x(int i) const { return memory + i % Tile::kStages * Tile::kStage; }
  __device__ unsigned char* w(int i) const { return x(i) + Tile::kRows * Tile::kRowBytes; }
  __device__ std::uint64_t* full_of(int i) const { return full + i % Tile::kStages; }
  __device__ std::uint64_t* empty_of(int i) const { return empty + i % Tile::kStages; }
  __device__ static int turn(int i) { return i / Tile::kStages & 1; }
};

/// One thread: steps [begin, end) of both operands.
template <class Tile>
__device__ inline void produce(const StageRing<Tile>& ring, const CUtensorMap& x_map,
                               const CUtensorMap& w_map, int row, int column, int begin, int end) {
  const int count = end - begin, early = min(count, Tile::kStages);
  const auto bring_w = [&](int i) {
    barrier_expect(ring.full_of(i), Tile::kStage);
    copy_box(ring.w(i), &w_map, ring.full_of(i), (begin + i) * Tile::kDepth, 0, column);
  };
  const auto bring_x = [&](int i) {
    copy_box(ring.x(i), &x_map, ring.full_of(i), (begin + i) * Tile::kDepth, 0, row);
  };
  for (int i = 0; i < early; ++i) bring_w(i);
  wait_for_inputs();
  for (int i = 0; i < early; ++i) bring_x(i);
  for (int i = early; i < count; ++i) {
    barrier_wait(ring.empty_of(i), ring.turn(i) ^ 1);
    bring_w(i);
    bring_x(i);
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    hopper_kernel(const __grid_constant__ Linear a, const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ CUtensorMap w_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using T = typename Tile::Element;
  constexpr int kN = Tile::kColumns, kRunsHere = kRuns / Tile::kSplits;
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ std::uint64_t barriers[2 * Tile::kStages];
  const StageRing<Tile> ring{memory, barriers, barriers + Tile::kStages};
  const int row = static_cast<int>(blockIdx.x) * Tile::kRows, column = static_cast<int>(blockIdx.y) * kN;
  const int steps = static_cast<int>((a.weight.columns + Tile::kDepth - 1) / Tile::kDepth);
  const int first = static_cast<int>(blockIdx.z) * kRunsHere;  // run
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0), lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, Tile::kConsumers / kWarp);
    }
    barrier_init_fence();
    fence_async();
  }
  __syncthreads();
  start_next();

  float* const sums = reinterpret_cast<float*>(memory);
  if (warp >= Tile::kConsumers / kWarp) {
    if constexpr (Tile::kUneven) give_registers<Tile::kFewRegisters>();
    if (warp == Tile::kConsumers / kWarp && lane == 0) {
      produce(ring, x_map, w_map, row, column, run_of(first, steps).begin,
              run_of(first + kRunsHere - 1, steps).end);
    }
    __syncwarp();
    if constexpr (Tile::kSplits > 1) cluster_sync();
  } else {
    if constexpr (Tile::kUneven) take_registers<Tile::kManyRegisters>();
    const int group = warp / 4;
    float c[kN / 2] = {}, total[kN / 2] = {};
    const auto release = [&](int i) {
      if (lane == 0) barrier_arrive(ring.empty_of(i));
    };
    int i = 0;
    for (int r = first; r < first + kRunsHere; ++r) {
      const Run run = run_of(r, steps);
      if (run.begin == run.end) continue;
      hold(c);
      for (int step = run.begin; step < run.end; ++step, ++i) {
        barrier_wait(ring.full_of(i), ring.turn(i));
        const std::uint32_t x = matrix_low(ring.x(i) + group * 64 * Tile::kRowBytes, 16),
                            w = matrix_low(ring.w(i), 16);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tile::kDepth / 16; ++k) {
          wgmma<T, Tile::kRowBytes, 0>(c, x + 2 * k, w + 2 * k, step != run.begin || k != 0);
        }
        wgmma_commit();
        if (step == run.begin) continue;
        wgmma_wait<1>();
        release(i - 1);
      }
      wgmma_wait<0>();
      hold(c);
      release(i - 1);
#pragma unroll
      for (int e = 0; e < kN / 2; ++e) total[e] += c[e];
    }
    // The stages have been read: their memory takes the sums.
    const auto group_barrier = [] { asm volatile("bar.sync 1, %0;" ::"n"(Tile::kConsumers) : "memory"); };
    group_barrier();
    float* const to = sums + (warp * 16 + lane / 4) * Tile::kSumStride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
      *reinterpret_cast<float2*>(to + n * 8) = make_float2(total[4 * n], total[4 * n + 1]);
      *reinterpret_cast<float2*>(to + 8 * Tile::kSumStride + n * 8) =
          make_float2(total[4 * n + 2], total[4 * n + 3]);
    }
    if constexpr (Tile::kSplits == 1) {
      group_barrier();
    } else {
      cluster_sync();
    }
    // As many threads as go evenly into the columns.
    constexpr int kAcross = kN / 4, kFinishing = Tile::kConsumers / kAcross * kAcross;
    constexpr int kRowsHere = Tile::kRows / Tile::kSplits;
    const int skipped = Tile::kSplits == 1 ? 0 : static_cast<int>(blockIdx.z) * kRowsHere;
    wait_for_inputs();
    if (threadIdx.x < kFinishing) {
      finish_tile<Tile, kFinishing, kRowsHere>(a, row + skipped, column, [&](float(&v)[4], int r, int c) {
        const float* const at = sums + (skipped + r) * Tile::kSumStride + c;
#pragma unroll
        for (int part = 0; part < Tile::kSplits; ++part) {
          const float4 sum =
              Tile::kSplits == 1 ? *reinterpret_cast<const float4*>(at) : read_cluster(at, part);
          v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
        }
      });
    }
  }
  if constexpr (Tile::kSplits > 1) cluster_sync();  // the others have read these sums
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

template <class Tile>
cudaError_t run(const Linear& a, cudaStream_t stream) {
  EncodeTiled encode = nullptr;
  CUtensorMap x_map, w_map;
  const auto tensor = [](const Matrix& m) {
    return TensorRows{m.data, m.dtype, m.stride, m.stride, m.rows, 1, m.columns};
  };
  cudaError_t error = find_encoder(encode);
  Matrix x = a.x;
  x.rows = a.out.rows;
  if (error == cudaSuccess) error = encode_rows(encode, x_map, tensor(x), Tile::kRows, Tile::kDepth);
  if (error == cudaSuccess)
    error = encode_rows(encode, w_map, tensor(a.weight), Tile::kColumns, Tile::kDepth);
  if (error != cudaSuccess) return error;
  const dim3 blocks(blocks_for(a.out.rows, Tile::kRows), blocks_for(a.out.columns, Tile::kColumns),
                    Tile::kSplits);
  return launch_chained(hopper_kernel<Tile>, Grid(blocks, Tile::kSplits, a.start), Tile::kThreads,
                        Tile::kBytes, stream, a, x_map, w_map);
}

template <class T, std::size_t... kIndices>
cudaError_t run_chosen(const Linear& a, cudaStream_t stream, std::index_sequence<kIndices...>) {
  constexpr cudaError_t (*kEach[])(const Linear&, cudaStream_t) = {run<HopperTile<T, kIndices>>...};
  return kEach[hopper_tile(a.out.rows, a.out.columns, a.weight.columns)](a, stream);
}

}  // namespace

bool takes_hopper(const Linear& a) {
  int device = 0;
  if (dtype_size(a.weight.dtype) != 2 || a.x.dtype != a.weight.dtype || a.norm.weight != nullptr ||
      a.rows != nullptr || cudaGetDevice(&device) != cudaSuccess) {
    return false;
  }
  return cuda_hopper_refusal(device).empty();
}

cudaError_t linear_hopper(const Linear& args, cudaStream_t stream) {
  constexpr std::make_index_sequence<std::size(kHopperTiles)> kAll;
  return args.weight.dtype == DType::bf16 ? run_chosen<__nv_bfloat16>(args, stream, kAll)
                                          : run_chosen<__half>(args, stream, kAll);
}

}  // namespace inkling::cuda
