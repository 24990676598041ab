// Linear layers for up to 16 rows: the time is that of reading the weight once, and of starting.
//
// A block takes kColumns columns of the output. It asks for its whole part of the weight before it waits for
// the kernel that makes x (chain.cuh), so that the weight comes while that kernel still runs; then it brings
// the rows of x, through the norm where there is one, into shared memory. Each of four warps takes one of the
// four runs of k (linear_tile.cuh) on its own. Empty rows of the matrix instructions read one row of zeros.
#include "engine/cuda/linear_few.h"

#include "engine/cuda/linear_few.cuh"
#include "engine/cuda/norm.cuh"

namespace inkling::cuda {
namespace {

constexpr int kThreads = kRuns * kWarp;

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

/// Brings x into shared memory, and a row of zeros behind it.
template <class Tile, class In, int kHeld>
__device__ inline void bring_rows(typename Tile::Element* tile, int stride, const Linear& a) {
  using T = typename Tile::Element;
  const int rows = static_cast<int>(a.out.rows), columns = stride - Tile::kPer;
  const int warp = threadIdx.x / kWarp;
  const In* const source = static_cast<const In*>(a.x.data);
  const bool as_is = a.norm.weight == nullptr && a.rows == nullptr && sizeof(In) == sizeof(T) &&
                     reinterpret_cast<std::uintptr_t>(source) % 16 == 0 && a.x.stride % Tile::kPer == 0;
  for (int i = threadIdx.x; i < columns; i += kThreads) tile[rows * stride + i] = from_float<T>(0.0f);
  if (as_is) {
    wait_for_inputs();
    const int width = static_cast<int>(a.x.columns);
    for (int row = 0; row < rows; ++row) {
      const T* const from = static_cast<const T*>(a.x.data) + row * a.x.stride;
      for (int k = static_cast<int>(threadIdx.x) * Tile::kPer; k < columns; k += kThreads * Tile::kPer) {
        const int left = min(max(width - k, 0), Tile::kPer);
        copy16_async(tile + row * stride + k, left > 0 ? from + k : from, left * static_cast<int>(sizeof(T)));
      }
    }
    copy_commit();
    return;
  }
  RowNorm<In, kHeld> norm(a.norm, static_cast<int>(a.x.columns));
  wait_for_inputs();
  for (int row = warp; row < rows; row += kRuns) {
    const std::int64_t from = a.rows == nullptr ? row : a.rows[row];
    norm(source + from * a.x.stride, columns,
         [&](int c, const float(&v)[4]) { store4(tile + row * stride + c, v, 4, true); });
  }
}

template <class Tile, class In, int kHeld>
__global__ void __launch_bounds__(kThreads) few_rows_kernel(const __grid_constant__ Linear a) {
  using T = typename Tile::Element;
  extern __shared__ __align__(16) unsigned char memory[];
  const int stride = Tile::stride(a.weight.columns), rows = static_cast<int>(a.out.rows);
  T *const w = reinterpret_cast<T*>(memory), *const x = w + Tile::kColumns * stride;
  float* const sums = reinterpret_cast<float*>(x + (rows + 1) * stride);
  const std::int64_t column = std::int64_t{blockIdx.x} * Tile::kColumns;
  const int warp = threadIdx.x / kWarp;
  const Run run = run_of(warp, Tile::steps(a.weight.columns));

  start_next();
  fetch_run<Tile>(w, stride, a.weight, column, run);
  // A thread finishes four columns of one row.
  constexpr int kAcross = Tile::kColumns / 4;
  const int row = threadIdx.x / kAcross, c = threadIdx.x % kAcross * 4;
  const Finish<T> finish(a, column + c, column + Tile::kColumns <= a.out.columns);
  const bool mine = row < rows && !finish.outside();
  bring_rows<Tile, In, kHeld>(x, stride, a);
  const float4 residual = mine ? finish.residual(row) : make_float4(0, 0, 0, 0);
  copy_wait<0>();
  __syncthreads();
  float product[1][Tile::kColumns / 8][4] = {};
  RunProduct<Tile>(x, rows, w, stride, run).add_to(product);
  put_sums<Tile>(sums + warp * Tile::kRows * Tile::kSumStride, product, 0, 0);
  __syncthreads();
  if (!mine) return;
  float v[4] = {};
  add_parts<kRuns, Tile::kRows, Tile::kSumStride>(v, sums, row, c);
  with_activation(a.activation, [&](auto activation) { finish.write(row, true, v, residual, activation); });
}

template <class Tile>
cudaError_t run(const Linear& a, cudaStream_t stream) {
  const unsigned grid = blocks_for(a.out.columns, Tile::kColumns);
  const std::size_t bytes = Tile::bytes(a.out.rows, a.weight.columns);
  const auto start = [&](auto in, auto held) {
    return launch_chained(few_rows_kernel<Tile, decltype(in), decltype(held)::value>, Grid(grid, a.start),
                          kThreads, bytes, stream, a);
  };
  using T = typename Tile::Element;
  if (a.x.dtype != DType::f32) return start(T{}, std::integral_constant<int, 0>());
  return with_held(a.x, a.norm, [&](auto held) { return start(float{}, held); });
}

/// Narrow blocks when wide ones would leave processors idle.
template <class T>
bool narrow(const Linear& a) {
  constexpr std::int64_t kFull = 128;  // blocks
  return (a.out.columns + 15) / 16 < kFull;
}

template <class T>
std::size_t bytes_of(const Linear& a) {
  return narrow<T>(a) ? FewTile<T, 8>::bytes(a.out.rows, a.weight.columns)
                      : FewTile<T, 16>::bytes(a.out.rows, a.weight.columns);
}

}  // namespace

bool takes_few(const Linear& a) {
  // So many blocks (a head over the vocabulary) that each would norm the rows again, turn after turn.
  constexpr std::int64_t kMostNorms = 8192;  // columns
  if (a.out.rows > kMostFewRows || (a.norm.weight != nullptr && a.out.columns > kMostNorms)) return false;
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    return false;
  }
  const std::size_t bytes = dtype_size(a.weight.dtype) == 2 ? bytes_of<__half>(a) : bytes_of<float>(a);
  const bool known = a.x.dtype == DType::f32 || a.x.dtype == a.weight.dtype;
  return known && bytes <= static_cast<std::size_t>(most);
}

cudaError_t linear_few(const Linear& args, cudaStream_t stream) {
  return with_type(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    return narrow<T>(args) ? run<FewTile<T, 8>>(args, stream) : run<FewTile<T, 16>>(args, stream);
  });
}

}  // namespace inkling::cuda
