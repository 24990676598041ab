// What the linear kernels share: the order of k, the copies, the products of a step, the epilogue.
#pragma once

#include <algorithm>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/rows.cuh"

namespace inkling::cuda {

// k is cut into this many runs of whole steps.
inline constexpr int kRuns = 4;

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
  static constexpr int kSumStride = kN + 8;           // floats between rows of sums
};

/// Copies kCount rows of a matrix, 128 bytes of each a step, into a tile; zeros beyond the matrix. One
/// thread's share, with all that does not change from step to step computed once.
template <class Tile, int kCount, int kThreads>
class Fetch {
 public:
  using T = typename Tile::Element;

  /// Rows from `first` on, which is inside the matrix.
  __device__ Fetch(const Matrix& from, std::int64_t first, int thread) {
    const int row = thread / kPieces, column = thread % kPieces * kPer;
    rows_ = static_cast<int>(min(from.rows - first, std::int64_t{kCount})) - row;
    columns_ = static_cast<int>(from.columns) - column;
    from_ = static_cast<const T*>(from.data) + (first + (rows_ > 0 ? row : 0)) * from.stride + column;
    pass_ = from.stride * kRowsPerPass;
    to_ = row * Tile::kStride + column;
  }
  __device__ void operator()(T* tile, int k) const {
    const int bytes = min(max(columns_ - k, 0), kPer) * static_cast<int>(sizeof(T));
#pragma unroll
    for (int pass = 0; pass * kRowsPerPass < kCount; ++pass) {
      const bool inside = pass * kRowsPerPass < rows_;
      copy16_async(tile + to_ + pass * kRowsPerPass * Tile::kStride,
                   inside ? from_ + pass * pass_ + k : from_, inside ? bytes : 0);
    }
  }

 private:
  static constexpr int kPieces = 8, kPer = 16 / sizeof(T), kRowsPerPass = kThreads / kPieces;
  static_assert(kCount % kRowsPerPass == 0);

  const T* from_;
  std::int64_t pass_;
  int rows_, columns_, to_;
};

/// c += left · right. In f32 a step starts from zero and is added by a rounding addition: the hardware's own
/// sums truncate, which adds up along a chain of 3072. (16-bit inputs carry errors a thousand times larger.)
template <class T>
__device__ inline void accumulate(float (&c)[4], const typename Mma<T>::A& left,
                                  const typename Mma<T>::B& right) {
  if constexpr (sizeof(T) == 4) {
    float step[4] = {};
    Mma<T>::multiply(step, left, right);
#pragma unroll
    for (int e = 0; e < 4; ++e) c[e] += step[e];
  } else {
    Mma<T>::multiply(c, left, right);
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
        accumulate<T>(c[i][j], left[i], right[0]);
        accumulate<T>(c[i][j + 1], left[i], right[1]);
      }
    }
  }
}

/// Four floats, `count` of them there.
__device__ inline float4 load4(const float* from, int count, bool wide) {
  if (wide) return *reinterpret_cast<const float4*>(from);
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (count > 0) v.x = from[0];
  if (count > 1) v.y = from[1];
  if (count > 2) v.z = from[2];
  if (count > 3) v.w = from[3];
  return v;
}

/// The epilogue of a thread that keeps to four columns of the output, from `column` on.
template <class T>
class Finish {
 public:
  /// `whole`: all columns of the thread's tile are inside the output. What is whole and aligned takes no
  /// branch per output.
  __device__ Finish(const Linear& a, std::int64_t column, bool whole)
      : a_(a),
        column_(column),
        count_(static_cast<int>(min(a.out.columns - column, std::int64_t{4}))),
        is_f32_(a.out.dtype == DType::f32),
        wide_(whole && in_fours(a.out.data, a.out.stride, is_f32_ ? 4 : static_cast<int>(sizeof(T))) &&
              in_fours(a.bias, 0, 4) && in_fours(a.residual.data, a.residual.stride, 4) &&
              in_fours(a.pre_activation.data, a.pre_activation.stride,
                       a.pre_activation.dtype == DType::f32 ? 4 : static_cast<int>(sizeof(T)))),
        bias_(a.bias != nullptr && count_ > 0 ? load4(a.bias + column, count_, wide_)
                                              : make_float4(0, 0, 0, 0)) {}

  __device__ bool outside() const { return count_ <= 0; }
  /// What is added to a row last, to be asked for early.
  __device__ float4 residual(std::int64_t row) const {
    if (a_.residual.data == nullptr) return make_float4(0, 0, 0, 0);
    return load4(static_cast<const float*>(a_.residual.data) + row * a_.residual.stride + column_, count_,
                 wide_);
  }
  /// v = residual + act(v + bias), written when `inside`: the arithmetic of rows side by side has no
  /// branches.
  template <Activation kActivation>
  __device__ void write(std::int64_t row, bool inside, float (&v)[4], const float4& residual,
                        std::integral_constant<Activation, kActivation>) const {
    v[0] += bias_.x, v[1] += bias_.y, v[2] += bias_.z, v[3] += bias_.w;
    if (inside && a_.pre_activation.data != nullptr) {
      const std::int64_t at = row * a_.pre_activation.stride + column_;
      if (a_.pre_activation.dtype == DType::f32) {
        store4(static_cast<float*>(a_.pre_activation.data) + at, v, count_, wide_);
      } else {
        store4(static_cast<T*>(a_.pre_activation.data) + at, v, count_, wide_);
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = activated(kActivation, v[e]);
    v[0] += residual.x, v[1] += residual.y, v[2] += residual.z, v[3] += residual.w;
    if (!inside) return;
    const std::int64_t at = row * a_.out.stride + column_;
    if (is_f32_) {
      store4(static_cast<float*>(a_.out.data) + at, v, count_, wide_);
    } else {
      store4(static_cast<T*>(a_.out.data) + at, v, count_, wide_);
    }
  }

 private:
  const Linear& a_;
  const std::int64_t column_;
  const int count_;
  const bool is_f32_, wide_;
  const float4 bias_;
};

/// Four neighbours of a row of sums, kParts tiles of kRows × kStride of them added in order.
template <int kParts, int kRows, int kStride>
__device__ inline void add_parts(float (&v)[4], const float* sums, int row, int column) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const float4 sum = *reinterpret_cast<const float4*>(sums + (part * kRows + row) * kStride + column);
    v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
  }
}

/// What follows the sums of a tile: writes rows [row, row + kRows) from `column` on, whose sums add(v, r, c)
/// adds. A thread goes down the rows of its four columns in a loop, since straight-line code for every output
/// runs out of the instruction cache, with several rows a turn, whose reads wait for memory together.
template <class Tile, int kThreads, int kRows, class Add>
__device__ inline void finish_tile(const Linear& a, std::int64_t row, std::int64_t column, const Add& add) {
  constexpr int kAcross = Tile::kColumns / 4, kDown = kThreads / kAcross;  // threads
  constexpr int kTogether = kRows / kDown >= 4 ? 4 : 1;
  static_assert(kThreads % kAcross == 0);
  const int first = threadIdx.x / kAcross, c = threadIdx.x % kAcross * 4;
  const Finish<typename Tile::Element> finish(a, column + c, column + Tile::kColumns <= a.out.columns);
  const int rows = static_cast<int>(min(a.out.rows - row, std::int64_t{kRows}));
  if (finish.outside()) return;
  with_activation(a.activation, [&](auto activation) {
#pragma unroll 1
    for (int r0 = first; r0 < rows; r0 += kDown * kTogether) {
      float4 residual[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int r = r0 + j * kDown;
        residual[j] = r < rows ? finish.residual(row + r) : make_float4(0, 0, 0, 0);
      }
      float v[kTogether][4] = {};
#pragma unroll
      for (int j = 0; j < kTogether; ++j) add(v[j], min(r0 + j * kDown, kRows - 1), c);
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int r = r0 + j * kDown;
        finish.write(row + r, r < rows, v[j], residual[j], activation);
      }
    }
  });
}

/// The sums of a warp into a tile of shared memory, at (row, column).
template <class Tile, int kTilesM, int kTilesN>
__device__ inline void put_sums(float* sums, const float (&c)[kTilesM][kTilesN][4], int row, int column) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTilesM * kTilesN * 2; ++i) {
    const int tile = i / 2, half = i % 2;
    float* to = sums + (row + tile / kTilesN * 16 + g + half * 8) * Tile::kSumStride + column +
                tile % kTilesN * 8 + 2 * t;
    const float* from = c[tile / kTilesN][tile % kTilesN] + 2 * half;
    *reinterpret_cast<float2*>(to) = make_float2(from[0], from[1]);
  }
}

}  // namespace inkling::cuda
