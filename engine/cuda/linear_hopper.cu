// Linear layers by wgmma and the tensor copy engine: the floor is the matrix units' rate for many rows, the
// reading of the weight for a few dozen.
//
// A block takes a tile of outputs (hopper_product.cuh). The four runs of k (linear_tile.cuh) are taken one
// after the other, or shared by the blocks of a cluster, each of which finishes a part of the rows
// (hopper_finish.cuh): it reads the others' sums of those and adds all in the order of runs.
#include "engine/cuda/linear_hopper.h"

#include <utility>

#include "engine/cuda/cuda.h"
#include "engine/cuda/hopper_finish.cuh"
#include "engine/cuda/hopper_product.cuh"

namespace inkling::cuda {
namespace {

/// The rows that a block finishes of those whose runs it shares with a cluster: all threads of the cluster
/// meet.
template <class Tile>
__device__ inline void finish_shared(const Linear& a, int row, int column, float* sums,
                                     const float (&total)[Tile::kColumns / 2]) {
  constexpr int kStride = Tile::kSumStride, kRowsHere = Tile::kRows / Tile::kSplits;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  float* const to = sums + (warp * 16 + lane / 4) * kStride + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < Tile::kColumns / 8; ++n) {
    *reinterpret_cast<float2*>(to + n * 8) = make_float2(total[4 * n], total[4 * n + 1]);
    *reinterpret_cast<float2*>(to + 8 * kStride + n * 8) = make_float2(total[4 * n + 2], total[4 * n + 3]);
  }
  cluster_sync();
  const int skipped = static_cast<int>(blockIdx.z) * kRowsHere;
  finish_tile<Tile, Tile::kConsumers, kRowsHere>(a, row + skipped, column, [&](float(&v)[4], int r, int c) {
#pragma unroll
    for (int part = 0; part < Tile::kSplits; ++part) {
      const float4 sum = read_cluster(sums + (skipped + r) * kStride + c, part);
      v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
    }
  });
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    hopper_kernel(const __grid_constant__ Linear a, const __grid_constant__ ProductMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kN = Tile::kColumns, kWarps = Tile::kConsumers / kWarp;
  constexpr int kHelpers = 3 * kWarp;  // threads beside the one warp that brings
  using Finish = HopperFinish<typename Tile::Element, kN>;
  static_assert(Finish::kStride == Tile::kSumStride);
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ std::uint64_t barriers[2 * Tile::kStages];
  __shared__ __align__(16) float bias[kN];
  const StageRing<Tile> ring{memory, barriers, barriers + Tile::kStages};
  const int row = static_cast<int>(blockIdx.x) * Tile::kRows, column = static_cast<int>(blockIdx.y) * kN;
  const int steps = static_cast<int>((a.weight.columns + Tile::kDepth - 1) / Tile::kDepth);
  const int block = Tile::kSplits == 1 ? 0 : static_cast<int>(blockIdx.z), first = block * Tile::kRunsHere;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0), lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  start_next();

  if (warp >= kWarps) {
    if constexpr (Tile::kUneven) give_registers<Tile::kFewRegisters>();
    if (warp == kWarps) {
      if (lane == 0) {
        produce(ring, maps.x, maps.w, row, column, run_of(first, steps).begin,
                run_of(first + Tile::kRunsHere - 1, steps).end);
      }
      __syncwarp();
    } else {
      for (int i = threadIdx.x - (kWarps + 1) * kWarp; i < kN; i += kHelpers) {
        bias[i] = a.bias != nullptr && column + i < a.out.columns ? a.bias[column + i] : 0.0f;
      }
      asm volatile("bar.arrive 1, %0;" ::"n"(Tile::kConsumers + kHelpers) : "memory");
    }
    if constexpr (Tile::kSplits > 1) cluster_sync();
  } else {
    if constexpr (Tile::kUneven) take_registers<Tile::kManyRegisters>();
    Finish finish(a, row + warp * 16, column);
    wait_for_inputs();
    if constexpr (Tile::kSplits == 1) finish.ask();
    float total[kN / 2];
    sum_runs(ring, first, steps, total);
    // The stages have been read, whose memory takes the sums, and the bias is there.
    asm volatile("bar.sync 1, %0;" ::"n"(Tile::kConsumers + kHelpers) : "memory");
    float* const sums = reinterpret_cast<float*>(memory);
    if constexpr (Tile::kSplits == 1) {
      finish(total, bias, sums + warp * 16 * Tile::kSumStride);
    } else {
      finish_shared<Tile>(a, row, column, sums, total);
    }
  }
  if constexpr (Tile::kSplits > 1) cluster_sync();  // the others have read these sums
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

template <class Tile>
cudaError_t run(const Linear& a, cudaStream_t stream) {
  ProductMaps maps;
  if (const cudaError_t error = encode<Tile>(maps, a); error != cudaSuccess) return error;
  const dim3 blocks(blocks_for(a.out.rows, Tile::kRows), blocks_for(a.out.columns, Tile::kColumns),
                    Tile::kSplits);
  return launch_chained(hopper_kernel<Tile>, Grid(blocks, Tile::kSplits, a.start), Tile::kThreads,
                        Tile::kBytes, stream, a, maps);
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
      a.rows != nullptr || a.pre_activation.data != nullptr || cudaGetDevice(&device) != cudaSuccess) {
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
