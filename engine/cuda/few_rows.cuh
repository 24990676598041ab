// A kernel of up to 16 rows but for how its weight comes into shared memory: the rows of x, through the norm
// where there is one, the product of each run by a warp, the epilogue.
#pragma once

#include "engine/cuda/linear_few.cuh"
#include "engine/cuda/norm.cuh"

namespace inkling::cuda {

inline constexpr int kFewThreads = kRuns * kWarp;  // a warp for each run of k

/// Brings x into shared memory, and a row of zeros behind it.
template <class Tile, class In, int kHeld>
__device__ inline void bring_rows(typename Tile::Element* tile, int stride, const Linear& a) {
  using T = typename Tile::Element;
  const int rows = static_cast<int>(a.out.rows), columns = stride - Tile::kPer;
  const int warp = threadIdx.x / kWarp;
  const In* const source = static_cast<const In*>(a.x.data);
  const bool as_is = a.norm.weight == nullptr && a.rows == nullptr && sizeof(In) == sizeof(T) &&
                     reinterpret_cast<std::uintptr_t>(source) % 16 == 0 && a.x.stride % Tile::kPer == 0;
  for (int i = threadIdx.x; i < columns; i += kFewThreads) tile[rows * stride + i] = from_float<T>(0.0f);
  if (as_is) {
    wait_for_inputs();
    const int width = static_cast<int>(a.x.columns);
    for (int row = 0; row < rows; ++row) {
      const T* const from = static_cast<const T*>(a.x.data) + row * a.x.stride;
      for (int k = static_cast<int>(threadIdx.x) * Tile::kPer; k < columns; k += kFewThreads * Tile::kPer) {
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

/// Whether a block may have so many bytes of shared memory on the current device.
inline bool fits(std::size_t bytes) {
  int device = 0, most = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         bytes <= static_cast<std::size_t>(most);
}

/// Where a block's tiles lie in its shared memory.
template <class Tile>
struct FewMemory {
  using T = typename Tile::Element;
  int stride;  // of a row of w or x
  T *w, *x;
  float* sums;

  __device__ FewMemory(const Linear& a, unsigned char* memory)
      : stride(Tile::stride(a.weight.columns)),
        w(reinterpret_cast<T*>(memory)),
        x(w + Tile::kColumns * stride),
        sums(reinterpret_cast<float*>(x + (a.out.rows + 1) * stride)) {}
};

/// A thread's part of a tile of the output: four columns of one row.
template <class Tile>
class FewOutput {
 public:
  __device__ FewOutput(const Linear& a, std::int64_t column)
      : a_(a),
        row_(static_cast<int>(threadIdx.x) / kAcross),
        c_(static_cast<int>(threadIdx.x) % kAcross * 4),
        finish_(a, column + c_, column + Tile::kColumns <= a.out.columns),
        mine_(row_ < a.out.rows && !finish_.outside()) {}

  /// Asks for what the product is added to, once inputs may be read.
  __device__ void ask() {
    if (mine_) residual_ = finish_.residual(row_);
  }
  /// Multiplies, each warp the run of the weight that it has put into shared memory, and writes. Threads that
  /// begin have seen all of x, and nobody reads sums any more.
  __device__ void multiply(const FewMemory<Tile>& shared, Run run) const {
    float product[1][Tile::kColumns / 8][4] = {};
    RunProduct<Tile>(shared.x, static_cast<int>(a_.out.rows), shared.w, shared.stride, run).add_to(product);
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    put_sums<Tile>(shared.sums + warp * Tile::kRows * Tile::kSumStride, product, 0, 0);
    __syncthreads();
    if (!mine_) return;
    float v[4] = {};
    add_parts<kRuns, Tile::kRows, Tile::kSumStride>(v, shared.sums, row_, c_);
    with_activation(a_.activation,
                    [&](auto activation) { finish_.write(row_, true, v, residual_, activation); });
  }

 private:
  static constexpr int kAcross = Tile::kColumns / 4;
  const Linear& a_;
  const int row_, c_;
  const Finish<typename Tile::Element> finish_;
  const bool mine_;
  float4 residual_ = make_float4(0, 0, 0, 0);
};

/// Narrow blocks when wide ones would leave processors idle.
inline bool narrow(const Linear& a) {
  constexpr std::int64_t kFull = 128;  // blocks
  return (a.out.columns + 15) / 16 < kFull;
}

/// Calls body(In{}, std::integral_constant<int, kHeld>) for what x and its norm are.
template <class T, class Body>
cudaError_t with_input(const Linear& a, const Body& body) {
  if (a.x.dtype != DType::f32) return body(T{}, std::integral_constant<int, 0>());
  return with_held(a.x, a.norm, [&](auto held) { return body(float{}, held); });
}

}  // namespace inkling::cuda
