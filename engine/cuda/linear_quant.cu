// Products with int8 or int4 weights. Few rows: a block reads its columns of the weight as they lie, half or
// a quarter of the bytes of bf16, and puts them into shared memory as bf16, all before it waits for the
// kernel that makes x (chain.cuh): what follows is the kernel of linear_few.cu. Many rows: the weight becomes
// bf16 in a workspace, some columns at a time, and linear() goes on.
#include "engine/cuda/linear_quant.h"

#include "engine/cuda/few_rows.cuh"
#include "engine/cuda/linear_quant_hopper.h"
#include "engine/cuda/quant_piece.cuh"
#include "engine/cuda/quantise.h"

namespace inkling::cuda {
namespace {

constexpr int kMostResident = 4;  // blocks of a processor that take turns: each more brings x once more

/// A tile's columns of the weight as they lie, which is side by side.
template <class Tile>
__device__ inline void fetch_columns(std::byte* to, const QuantMatrix& weight, std::int64_t column) {
  const auto count = min(weight.rows - column, std::int64_t{Tile::kColumns});
  const int bytes = static_cast<int>(count * weight.stride);
  const std::byte* const from = weight.data + column * weight.stride;
  for (int at = static_cast<int>(threadIdx.x) * 16; at < bytes; at += kFewThreads * 16) {
    copy16_async(to + at, from + at, true);
  }
  copy_commit();
}

/// A run of these columns as bf16, by one warp. Columns that are not there become what lies in memory, and
/// outputs that are not there, too.
template <class Tile, WeightFormat kFormat>
__device__ inline void widen_run(typename Tile::Element* tile, int stride, const std::byte* columns,
                                 const QuantMatrix& weight, Run run) {
  constexpr int kLanes = kWarp / Tile::kColumns;  // side by side along a column
  const int lane = threadIdx.x % kWarp, n = lane / kLanes, end = run.end * Tile::kDepth;
  const std::byte* const row = columns + n * weight.stride;
#pragma unroll 3
  for (int k = run.begin * Tile::kDepth + lane % kLanes * kQuantPiece; k < end; k += kLanes * kQuantPiece) {
    uint4 both[2];
    weights_at<kFormat>(row, weight.numbers, k, both);
    auto* const to = reinterpret_cast<uint4*>(tile + n * stride + k);
    to[0] = both[0];
    to[1] = both[1];
  }
  __syncwarp();
}

/// A block takes one tile of columns after the other, and asks for the integers of the next, which are `held`
/// bytes from the beginning of its memory on, before it multiplies.
template <class Tile, WeightFormat kFormat, class In, int kHeld>
__global__ void __launch_bounds__(kFewThreads, kHeld > 4 ? 1 : kMostResident)
    few_rows_kernel(const __grid_constant__ Linear a, const __grid_constant__ QuantMatrix weight, int held) {
  extern __shared__ __align__(16) unsigned char memory[];
  const FewMemory<Tile> shared(a, memory);
  const Run run = run_of(threadIdx.x / kWarp, Tile::steps(a.weight.columns));
  const int tiles = static_cast<int>((a.out.columns + Tile::kColumns - 1) / Tile::kColumns);
  int tile = static_cast<int>(blockIdx.x), turn = 0;
  const auto integers = [&] {
    return reinterpret_cast<std::byte*>(memory) + held + turn * Tile::kColumns * weight.stride;
  };
  // Threads that come out of here have done with the tile before.
  const auto widen = [&] {
    copy_wait<0>();
    __syncthreads();
    widen_run<Tile, kFormat>(shared.w, shared.stride, integers(), weight, run);
  };
  const auto fetch_next = [&] {
    turn ^= 1;
    if (tile + static_cast<int>(gridDim.x) < tiles) {
      fetch_columns<Tile>(integers(), weight,
                          std::int64_t{tile + static_cast<int>(gridDim.x)} * Tile::kColumns);
    }
  };
  start_next();
  fetch_columns<Tile>(integers(), weight, std::int64_t{tile} * Tile::kColumns);
  widen();
  const auto multiply = [&](FewOutput<Tile>& output) {
    output.ask();
    fetch_next();
    output.multiply(shared, run);
    tile += static_cast<int>(gridDim.x);
  };
  {
    FewOutput<Tile> output(a, std::int64_t{tile} * Tile::kColumns);  // its bias comes beside x
    bring_rows<Tile, In, kHeld>(shared.x, shared.stride, a);
    copy_wait<0>();
    __syncthreads();
    multiply(output);
  }
#pragma unroll 1
  while (tile < tiles) {
    widen();
    FewOutput<Tile> output(a, std::int64_t{tile} * Tile::kColumns);
    multiply(output);
  }
}

/// The blocks of a product, and their shared memory.
template <class Tile>
struct FewGrid {
  unsigned blocks;
  std::size_t held, bytes;

  FewGrid(const Linear& a, const QuantMatrix& weight)
      : blocks(blocks_for(a.out.columns, Tile::kColumns)), held(Tile::bytes(a.out.rows, a.weight.columns)) {
    const auto integers = static_cast<std::size_t>(Tile::kColumns * weight.stride);
    const unsigned most = resident(held + 2 * integers);
    const bool turns = most != 0 && blocks > most;
    bytes = held + integers * (turns ? 2 : 1);
    if (turns) blocks = most;
  }

 private:
  /// Blocks that run at a time.
  static unsigned resident(std::size_t bytes) {
    constexpr std::size_t kOwn = 1024;  // bytes that the system takes of each
    int device = 0, processors = 0, memory = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&memory, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess) {
      return 0;
    }
    return static_cast<unsigned>(
               std::min(static_cast<std::size_t>(memory) / (bytes + kOwn), std::size_t{kMostResident})) *
           static_cast<unsigned>(processors);
  }
};

template <class Tile>
cudaError_t few_rows(const Linear& a, const QuantMatrix& weight, cudaStream_t stream) {
  const FewGrid<Tile> grid(a, weight);
  return with_quantised(weight.format, [&](auto format) {
    return with_input<__nv_bfloat16>(a, [&](auto in, auto held) {
      return launch_chained(
          few_rows_kernel<Tile, decltype(format)::value, decltype(in), decltype(held)::value>,
          Grid(grid.blocks, a.start), kFewThreads, grid.bytes, stream, a, weight,
          static_cast<int>(grid.held));
    });
  });
}

/// bf16 columns of `a` that become a workspace at a time: what stays in the L2 cache until it is read.
std::int64_t columns_at_once(const Linear& a) {
  constexpr std::int64_t kMost = 16 << 20, kWhole = 1024;  // bytes; columns
  const std::int64_t most = std::max(kMost / (a.weight.stride * 2) / kWhole, std::int64_t{1}) * kWhole;
  return std::min(most, a.out.columns);
}

/// Columns [begin, begin + count) of the output.
Linear part_of(const Linear& a, std::int64_t begin, std::int64_t count) {
  const auto columns = [&](const Matrix& m) {
    Matrix some = m;
    if (m.data != nullptr)
      some.data = static_cast<std::byte*>(m.data) + begin * static_cast<std::int64_t>(dtype_size(m.dtype));
    some.columns = count;
    return some;
  };
  Linear part = a;
  part.weight.rows = count;
  if (a.bias != nullptr) part.bias = a.bias + begin;
  part.residual = columns(a.residual);
  part.pre_activation = columns(a.pre_activation);
  part.out = columns(a.out);
  return part;
}

using Narrow = FewTile<__nv_bfloat16, 8>;
using Wide = FewTile<__nv_bfloat16, 16>;

}  // namespace

bool norms_inside(const Linear& args, const QuantMatrix& weight) {
  return norms_inside(args) &&
         fits(narrow(args) ? FewGrid<Narrow>(args, weight).bytes : FewGrid<Wide>(args, weight).bytes);
}

std::size_t quantised_workspace(const Linear& args, const QuantMatrix& weight) {
  if (norms_inside(args, weight) || takes_integers(args)) return 0;
  return static_cast<std::size_t>(columns_at_once(args) * args.weight.stride) * dtype_size(DType::bf16);
}

cudaError_t linear_quantised(const Linear& args, const QuantMatrix& weight, std::byte* workspace,
                             cudaStream_t stream) {
  if (norms_inside(args, weight)) {
    return narrow(args) ? few_rows<Narrow>(args, weight, stream) : few_rows<Wide>(args, weight, stream);
  }
  if (takes_integers(args)) return linear_quant_hopper(args, weight, stream);
  const std::int64_t at_once = columns_at_once(args);
  for (std::int64_t begin = 0; begin < args.out.columns; begin += at_once) {
    const std::int64_t count = std::min(at_once, args.out.columns - begin);
    Linear part = part_of(args, begin, count);
    part.weight.data = workspace;
    part.start = Start::in_turn;  // the weight has just been written
    cudaError_t error = dequantise(weight.part(begin, count), part.weight, stream);
    if (error == cudaSuccess) error = linear(part, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace inkling::cuda
