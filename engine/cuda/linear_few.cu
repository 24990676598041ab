// Linear layers for up to 16 rows: the time is that of reading the weight once, and of starting.
//
// A block takes kColumns columns of the output. It asks for its whole part of the weight before it waits for
// the kernel that makes x (chain.cuh), so that the weight comes while that kernel still runs; then it brings
// the rows of x, through the norm where there is one, into shared memory. Each of four warps takes one of the
// four runs of k (linear_tile.cuh) on its own. Empty rows of the matrix instructions read one row of zeros.
#include "engine/cuda/linear_few.h"

#include "engine/cuda/few_rows.cuh"

namespace inkling::cuda {
namespace {

/// The columns of a run of the weight, 16 bytes at a time, by one warp.
template <class Tile>
__device__ inline void fetch_run(typename Tile::Element* tile, int stride, const Matrix& weight,
                                 std::int64_t column, Run run) {
  using T = typename Tile::Element;
  constexpr int kPer = Tile::kPer, kLanes = kWarp / Tile::kColumns;  // lanes side by side along a column
  const int lane = threadIdx.x % kWarp, n = lane / kLanes;
  const bool inside = column + n < weight.rows;
  const T* const from = static_cast<const T*>(weight.data) + (inside ? column + n : 0) * weight.stride;
  const int end = run.end * Tile::kDepth, columns = static_cast<int>(weight.columns);
#pragma unroll 8
  for (int k = run.begin * Tile::kDepth + lane % kLanes * kPer; k < end; k += kLanes * kPer) {
    const int left = inside ? min(max(columns - k, 0), kPer) : 0;
    copy16_async(tile + n * stride + k, left > 0 ? from + k : from, left * static_cast<int>(sizeof(T)));
  }
  copy_commit();
}

template <class Tile, class In, int kHeld>
__global__ void __launch_bounds__(kFewThreads) few_rows_kernel(const __grid_constant__ Linear a) {
  extern __shared__ __align__(16) unsigned char memory[];
  const FewMemory<Tile> shared(a, memory);
  const std::int64_t column = std::int64_t{blockIdx.x} * Tile::kColumns;
  const Run run = run_of(threadIdx.x / kWarp, Tile::steps(a.weight.columns));
  start_next();
  fetch_run<Tile>(shared.w, shared.stride, a.weight, column, run);
  FewOutput<Tile> output(a, column);
  bring_rows<Tile, In, kHeld>(shared.x, shared.stride, a);
  output.ask();
  copy_wait<0>();
  __syncthreads();
  output.multiply(shared, run);
}

template <class Tile>
cudaError_t run(const Linear& a, cudaStream_t stream) {
  const unsigned grid = blocks_for(a.out.columns, Tile::kColumns);
  const std::size_t bytes = Tile::bytes(a.out.rows, a.weight.columns);
  return with_input<typename Tile::Element>(a, [&](auto in, auto held) {
    return launch_chained(few_rows_kernel<Tile, decltype(in), decltype(held)::value>, Grid(grid, a.start),
                          kFewThreads, bytes, stream, a);
  });
}

template <class T>
std::size_t bytes_of(const Linear& a) {
  return narrow(a) ? FewTile<T, 8>::bytes(a.out.rows, a.weight.columns)
                   : FewTile<T, 16>::bytes(a.out.rows, a.weight.columns);
}

}  // namespace

bool takes_few(const Linear& a) {
  // So many blocks (a head over the vocabulary) that each would norm the rows again, turn after turn.
  constexpr std::int64_t kMostNorms = 8192;  // columns
  if (a.out.rows > kMostFewRows || (a.norm.weight != nullptr && a.out.columns > kMostNorms)) return false;
  const std::size_t bytes = dtype_size(a.weight.dtype) == 2 ? bytes_of<__half>(a) : bytes_of<float>(a);
  const bool known = a.x.dtype == DType::f32 || a.x.dtype == a.weight.dtype;
  return known && fits(bytes);
}

cudaError_t linear_few(const Linear& args, cudaStream_t stream) {
  return with_type(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    return narrow(args) ? run<FewTile<T, 8>>(args, stream) : run<FewTile<T, 16>>(args, stream);
  });
}

}  // namespace inkling::cuda
