// Products of more than a few rows with integer weights, by wgmma: the floor is the reading of the integers
// for a few dozen rows and the matrix units' rate for many.
//
// As in linear_hopper.cu a block takes a tile of outputs, warpgroups of 64 rows multiply stages of 64 of k,
// and the four runs of k are taken one after the other or by the four blocks of a cluster. What brings a
// stage is a warpgroup: one thread asks the copy engine for x, and all of them read integers, some steps
// ahead in registers, and write them to the stage as bf16, swizzled as the copy engine would have written
// them. Four instructions a weight: 64 columns of a step are 128 instructions a thread, where 128 rows times
// them keep the matrix units busy for 256 cycles. The weight's first stages are there before x is waited for
// (chain.cuh).
#include "engine/cuda/linear_quant_hopper.h"

#include <cmath>
#include <iterator>
#include <utility>

#include "engine/cuda/hopper_tiles.h"
#include "engine/cuda/linear_hopper.h"
#include "engine/cuda/linear_tile.cuh"
#include "engine/cuda/quant_piece.cuh"
#include "engine/cuda/tensor_map.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {
namespace {

constexpr HopperTileShape kTiles[] = {
    {2, 128, 6, 1}, {2, 64, 8, 1}, {2, 128, 6, 4}, {1, 64, 6, 1}, {1, 64, 6, 4}};
constexpr int kBringing = 128;  // threads

template <WeightFormat kOf, std::size_t kIndex>
struct QuantTile {
  using Element = __nv_bfloat16;
  static constexpr WeightFormat kFormat = kOf;
  static constexpr HopperTileShape kShape = kTiles[kIndex];
  static constexpr int kRows = kShape.rows(), kColumns = kShape.columns, kStages = kShape.stages;
  static constexpr int kSplits = kShape.splits;
  static constexpr int kDepth = 64, kRowBytes = 128;
  static constexpr int kConsumers = 128 * kShape.groups, kThreads = kConsumers + kBringing;
  static constexpr int kStage = kShape.stage_bytes(), kBytes = kShape.bytes();
  static constexpr int kSumStride = kColumns + 8;           // floats between rows of sums
  static constexpr int kAhead = kColumns == 64 ? 4 : 2;     // steps of integers under way
  static constexpr int kPieces = kColumns * 4 / kBringing;  // of a thread and step, side by side
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

/// A thread's share of a step of the weight: integers of one column.
template <class Tile>
struct Integers {
  using Format = Quantised<Tile::kFormat>;
  typename Format::Piece piece[Tile::kPieces];
  typename Format::Numbers numbers;
};

/// Reads steps of the integers and writes them to stages.
template <class Tile>
class Weights {
 public:
  using Format = Quantised<Tile::kFormat>;

  __device__ Weights(const QuantMatrix& weight, int column, int thread, int end)
      : column_(thread / kAcross), first_(thread % kAcross * Tile::kPieces), last_(max(end - 1, 0)) {
    const std::int64_t row = min(std::int64_t{column + column_}, weight.rows - 1);
    pieces_ = reinterpret_cast<const typename Format::Piece*>(weight.data + row * weight.stride) + first_;
    numbers_ =
        reinterpret_cast<const typename Format::Numbers*>(weight.data + row * weight.stride + weight.numbers);
  }
  /// Beyond the last step that one again.
  __device__ void read(Integers<Tile>& to, int step) const {
    const int k = min(step, last_) * Tile::kDepth;
    const auto* const from = pieces_ + k / kQuantPiece;
#pragma unroll
    for (int i = 0; i < Tile::kPieces; ++i) to.piece[i] = __ldg(from + i);
    to.numbers = __ldg(numbers_ + k / Format::kGroup);
  }
  __device__ void write(const Integers<Tile>& from, unsigned char* stage) const {
    unsigned char* const row = stage + column_ * Tile::kRowBytes;
#pragma unroll
    for (int i = 0; i < Tile::kPieces; ++i) {
      uint4 both[2];
      weights_of<Tile::kFormat>(from.piece[i], from.numbers, both);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int piece = 2 * (first_ + i) + half;
        *reinterpret_cast<uint4*>(row + ((piece ^ column_ % 8) * 16)) = both[half];
      }
    }
  }

 private:
  static constexpr int kAcross = kBringing / Tile::kColumns;  // threads of a column
  const typename Format::Piece* pieces_;
  const typename Format::Numbers* numbers_;
  int column_, first_, last_;
};

/// One warpgroup: steps [begin, end) of both operands.
template <class Tile>
__device__ inline void produce(const StageRing<Tile>& ring, const CUtensorMap& x_map,
                               const QuantMatrix& weight, int row, int column, int begin, int end) {
  const int count = end - begin, early = min(count, Tile::kStages);
  const int thread = static_cast<int>(threadIdx.x) - Tile::kConsumers;
  const Weights<Tile> weights(weight, column, thread, end);
  const auto bring_x = [&](int i) {
    if (thread != 0) return;
    barrier_expect(ring.full_of(i), Tile::kRows * Tile::kRowBytes);
    copy_box(ring.x(i), &x_map, ring.full_of(i), (begin + i) * Tile::kDepth, 0, row);
  };
  const auto bring_first_x = [&] {
    wait_for_inputs();
    for (int i = 0; i < early; ++i) bring_x(i);
  };
  // Step i is in ahead[i % kAhead], which the loop below says in constants: a register that is copied is
  // waited for.
  Integers<Tile> ahead[Tile::kAhead];
#pragma unroll
  for (int i = 0; i < Tile::kAhead; ++i) weights.read(ahead[i], begin + i);
#pragma unroll 1
  for (int first = 0; first <= count; first += Tile::kAhead) {
#pragma unroll
    for (int j = 0; j < Tile::kAhead; ++j) {
      const int i = first + j;
      if (i == early) bring_first_x();
      if (i < count) {
        if (i >= early) {
          barrier_wait(ring.empty_of(i), ring.turn(i) ^ 1);
          bring_x(i);
        }
        weights.write(ahead[j], ring.w(i));
        weights.read(ahead[j], begin + i + Tile::kAhead);
        fence_async();
        __syncwarp();
        if (thread % kWarp == 0) barrier_arrive(ring.full_of(i));
      }
    }
  }
}

/// One warpgroup of those that multiply: its 64 rows of the runs [first, first + kRunsHere).
template <class Tile>
__device__ inline void multiply(float (&total)[Tile::kColumns / 2], const StageRing<Tile>& ring, int steps,
                                int first) {
  const int group = static_cast<int>(threadIdx.x) / 128, lane = static_cast<int>(threadIdx.x) % kWarp;
  float c[Tile::kColumns / 2] = {};
  const auto release = [&](int i) {
    if (lane == 0) barrier_arrive(ring.empty_of(i));
  };
  int i = 0;
  for (int r = first; r < first + kRuns / Tile::kSplits; ++r) {
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
        wgmma<typename Tile::Element, Tile::kRowBytes, 0>(c, x + 2 * k, w + 2 * k,
                                                          step != run.begin || k != 0);
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
    for (int e = 0; e < Tile::kColumns / 2; ++e) total[e] += c[e];
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    quant_kernel(const __grid_constant__ Linear a, const __grid_constant__ QuantMatrix weight,
                 const __grid_constant__ CUtensorMap x_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
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
      barrier_init(ring.full + i, 1 + kBringing / kWarp);  // who asks for x, and each warp that writes
      barrier_init(ring.empty + i, Tile::kConsumers / kWarp);
    }
    barrier_init_fence();
    fence_async();
  }
  __syncthreads();
  start_next();

  float* const sums = reinterpret_cast<float*>(memory);
  if (warp >= Tile::kConsumers / kWarp) {
    produce(ring, x_map, weight, row, column, run_of(first, steps).begin,
            run_of(first + kRunsHere - 1, steps).end);
    if constexpr (Tile::kSplits > 1) cluster_sync();
  } else {
    float total[kN / 2] = {};
    multiply<Tile>(total, ring, steps, first);
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
    constexpr int kRowsHere = Tile::kRows / Tile::kSplits;
    const int skipped = Tile::kSplits == 1 ? 0 : static_cast<int>(blockIdx.z) * kRowsHere;
    wait_for_inputs();
    finish_tile<Tile, Tile::kConsumers, kRowsHere>(a, row + skipped, column, [&](float(&v)[4], int r, int c) {
      const float* const at = sums + (skipped + r) * Tile::kSumStride + c;
#pragma unroll
      for (int part = 0; part < Tile::kSplits; ++part) {
        const float4 sum = Tile::kSplits == 1 ? *reinterpret_cast<const float4*>(at) : read_cluster(at, part);
        v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
      }
    });
  }
  if constexpr (Tile::kSplits > 1) cluster_sync();  // the others have read these sums
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

template <class Tile>
cudaError_t run(const Linear& a, const QuantMatrix& weight, cudaStream_t stream) {
  EncodeTiled encode = nullptr;
  CUtensorMap x_map;
  cudaError_t error = find_encoder(encode);
  if (error != cudaSuccess) return error;
  const TensorRows x{a.x.data, a.x.dtype, a.x.stride, a.x.stride, a.out.rows, 1, a.x.columns};
  error = encode_rows(encode, x_map, x, Tile::kRows, Tile::kDepth);
  if (error != cudaSuccess) return error;
  const dim3 blocks(blocks_for(a.out.rows, Tile::kRows), blocks_for(a.out.columns, Tile::kColumns),
                    Tile::kSplits);
  return launch_chained(quant_kernel<Tile>, Grid(blocks, Tile::kSplits, a.start), Tile::kThreads,
                        Tile::kBytes, stream, a, weight, x_map);
}

/// About how many µs (M, K) · (K, N) takes in such tiles, as hopper_time(): of 23 shapes measured in all five
/// on an H200 this picks what is 1 % above the best in the mean, 12 % at worst. A step costs what its weights
/// do, for whoever brings them, and two blocks of a processor hide a quarter of each other's.
double time_of(const HopperTileShape& tile, std::int64_t m, std::int64_t n, std::int64_t k) {
  constexpr int kProcessors = 132;
  const int resident = tile.bytes() <= 113 * 1024 ? 2 : 1;
  const double step = 0.2 * tile.columns / 64, finish = 0.1 * tile.groups * tile.columns / 64;
  const double blocks =
      static_cast<double>(blocks_for(m, tile.rows())) * blocks_for(n, tile.columns) * tile.splits;
  const double turns = std::ceil(blocks / kProcessors),
               steps = std::ceil(blocks_for(k, 64) / static_cast<double>(tile.splits));
  return (tile.splits > 1 ? 4.0 : 3.0) + (turns > 1 && resident > 1 ? 0.75 * turns : turns) * steps * step +
         std::ceil(blocks / (kProcessors * resident)) * finish;
}

template <WeightFormat kFormat, std::size_t... kIndices>
cudaError_t run_chosen(const Linear& a, const QuantMatrix& weight, cudaStream_t stream,
                       std::index_sequence<kIndices...>) {
  constexpr cudaError_t (*kEach[])(const Linear&, const QuantMatrix&,
                                   cudaStream_t) = {run<QuantTile<kFormat, kIndices>>...};
  const auto time = [&](int i) { return time_of(kTiles[i], a.out.rows, a.out.columns, a.weight.columns); };
  int best = 0;
  for (int i = 1; i < static_cast<int>(std::size(kTiles)); ++i) {
    if (time(i) < time(best)) best = i;
  }
  return kEach[best](a, weight, stream);
}

}  // namespace

bool takes_integers(const Linear& args) {
  constexpr std::int64_t kMost = 512;  // rows; of more each weight would be widened more than four times
  return args.out.rows <= kMost && takes_hopper(args);
}

cudaError_t linear_quant_hopper(const Linear& args, const QuantMatrix& weight, cudaStream_t stream) {
  return with_quantised(weight.format, [&](auto format) {
    return run_chosen<decltype(format)::value>(args, weight, stream,
                                               std::make_index_sequence<std::size(kTiles)>());
  });
}

}  // namespace inkling::cuda
