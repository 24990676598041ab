// Linear layers by mma.sync: out (M × N) = x (M × K) · weightᵀ, weight (N × K).
//
// A block takes a tile of kRows × kColumns outputs and walks k in steps of 128 bytes, kStages − 1 of them in
// flight (cp.async). k is cut into four runs; each is one chain of the same matrix instructions from zero,
// and the four sums are added in order, whatever the tile: its shape is a matter of speed and not of bits, so
// a row's result does not depend on M. f32 goes through three tf32 products (mma.cuh), exact to 2⁻²². Floors:
// decode reads each weight once, many rows the matrix units' rate. Oracle: tests/engine/cuda.cpp against the
// CPU's reference. Measured: engine/cuda/README.md.
#include <algorithm>

#include "engine/cuda/activation.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"
#include "engine/cuda/launch.cuh"

namespace inkling::cuda {
namespace {

// k is cut into this many runs of whole steps.
constexpr int kRuns = 4;

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

/// Four neighbours of a row, or with `wide` as one access.
template <class T>
__device__ inline void store4(T* to, const float (&v)[4], int count, bool wide) {
  if (wide) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
      *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = from_float<T>(v[i]);
  }
}

/// Whether rows can be met four elements at a time from column 0 on.
__device__ inline bool in_fours(const void* data, std::int64_t stride, int size) {
  return stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(data) % (4 * size) == 0;
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

/// What follows the sums of a tile, which lie in shared memory (kParts of them to be added in order): bias,
/// activation, residual. A thread keeps to four columns and goes down the rows: in a loop, since
/// straight-line code for every output runs out of the instruction cache, with several rows a turn, whose
/// reads wait for memory together.
template <class Tile, int kThreads, int kParts>
__device__ inline void finish_tile(const Linear& a, const float* sums, std::int64_t row,
                                   std::int64_t column) {
  using T = typename Tile::Element;
  constexpr int kAcross = Tile::kColumns / 4, kDown = kThreads / kAcross;  // threads
  constexpr int kTogether = Tile::kRows / kDown >= 4 ? 4 : 1;
  static_assert(kThreads % kAcross == 0);
  const int first = threadIdx.x / kAcross, c = threadIdx.x % kAcross * 4;
  const bool is_f32 = a.out.dtype == DType::f32, has_residual = a.residual.data != nullptr;
  // One answer for the whole tile: what is whole and aligned takes no branch per output.
  const bool wide = column + Tile::kColumns <= a.out.columns &&
                    in_fours(a.out.data, a.out.stride, is_f32 ? 4 : static_cast<int>(sizeof(T))) &&
                    in_fours(a.bias, 0, 4) && in_fours(a.residual.data, a.residual.stride, 4) &&
                    in_fours(a.pre_activation.data, a.pre_activation.stride, 4);
  const int count = static_cast<int>(min(a.out.columns - column - c, std::int64_t{4}));
  const int rows = static_cast<int>(min(a.out.rows - row, std::int64_t{Tile::kRows}));
  if (count <= 0) return;
  const float4 bias = a.bias != nullptr ? load4(a.bias + column + c, count, wide) : make_float4(0, 0, 0, 0);
  const auto* residual_at = static_cast<const float*>(a.residual.data) + row * a.residual.stride + column + c;
  const std::int64_t out_at = row * a.out.stride + column + c;
#pragma unroll 1
  for (int r0 = first; r0 < rows; r0 += kDown * kTogether) {
    float4 residual[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int r = r0 + j * kDown;
      residual[j] = has_residual && r < rows ? load4(residual_at + r * a.residual.stride, count, wide)
                                             : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int r = r0 + j * kDown;
      if (r >= rows) break;
      float v[4] = {};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float4 sum =
            *reinterpret_cast<const float4*>(sums + (part * Tile::kRows + r) * Tile::kSumStride + c);
        v[0] += sum.x, v[1] += sum.y, v[2] += sum.z, v[3] += sum.w;
      }
      v[0] += bias.x, v[1] += bias.y, v[2] += bias.z, v[3] += bias.w;
      if (a.pre_activation.data != nullptr) {
        store4(static_cast<float*>(a.pre_activation.data) + (row + r) * a.pre_activation.stride + column + c,
               v, count, wide);
      }
      if (a.activation != Activation::none) {
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = activated(a.activation, v[e]);
      }
      v[0] += residual[j].x, v[1] += residual[j].y, v[2] += residual[j].z, v[3] += residual[j].w;
      if (is_f32) {
        store4(static_cast<float*>(a.out.data) + out_at + r * a.out.stride, v, count, wide);
      } else {
        store4(static_cast<T*>(a.out.data) + out_at + r * a.out.stride, v, count, wide);
      }
    }
  }
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
  const auto begin = [&](int step) {
    if (step < steps) {
      T* tile = shared + step % Tile::kStages * Tile::kStage;
      fetch_x(tile, step * Tile::kDepth);
      fetch_w(tile + Tile::kRows * Tile::kStride, step * Tile::kDepth);
    }
    copy_commit();
  };
  for (int step = 0; step < Tile::kStages - 1; ++step) begin(step);

  float c[kTilesM][kTilesN][4] = {}, total[kTilesM][kTilesN][4] = {};
  for (int r = 0, step = 0; r < kRuns; ++r) {
    for (const int end = run_of(r, steps).end; step < end; ++step) {
      copy_wait<Tile::kStages - 2>();
      __syncthreads();
      begin(step + Tile::kStages - 1);
      const T* x = shared + step % Tile::kStages * Tile::kStage;
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
  finish_tile<Tile, kThreads, 1>(a, sums, row, column);
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
  const auto begin = [&](int step) {
    if (step < run.end) {
      T* tile = shared + (step - run.begin) % Tile::kStages * Tile::kStage;
      fetch_w(tile + Tile::kRows * Tile::kStride, step * Tile::kDepth);
      fetch_x(tile, step * Tile::kDepth);
    }
    copy_commit();
  };
  for (int i = 0; i < Tile::kStages - 1; ++i) begin(run.begin + i);
  float c[kTilesM][kTilesN][4] = {};
  for (int step = run.begin; step < run.end; ++step) {
    copy_wait<Tile::kStages - 2>();
    __syncwarp();
    begin(step + Tile::kStages - 1);
    const T* x = shared + (step - run.begin) % Tile::kStages * Tile::kStage;
    multiply_step<Tile>(c, x, 0, x + Tile::kRows * Tile::kStride, 0);
  }
  copy_wait<0>();
  __syncthreads();  // the tiles have been read: their memory takes the sums
  float* const sums = reinterpret_cast<float*>(memory);
  put_sums<Tile>(sums + warp * Tile::kRows * Tile::kSumStride, c, 0, 0);
  __syncthreads();
  finish_tile<Tile, kRuns * kWarp, kRuns>(a, sums, row, column);
}

template <class Tile>
dim3 grid_of(const Linear& a) {
  const auto blocks = [](std::int64_t n, int per) { return static_cast<unsigned>((n + per - 1) / per); };
  return {blocks(a.out.rows, Tile::kRows), blocks(a.out.columns, Tile::kColumns)};
}

template <class Tile>
cudaError_t few_rows(const Linear& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = kRuns * sizeof(typename Tile::Element) * Tile::kStage * Tile::kStages;
  static_assert(kBytes >= kRuns * sizeof(float) * Tile::kRows * Tile::kSumStride);
  return launch(few_rows_kernel<Tile>, grid_of<Tile>(a), kRuns * kWarp, kBytes, stream, a);
}

template <class Tile, int kWarpsM, int kWarpsN>
cudaError_t many_rows(const Linear& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(typename Tile::Element) * Tile::kStage * Tile::kStages;
  static_assert(kBytes >= sizeof(float) * Tile::kRows * Tile::kSumStride);
  return launch(many_rows_kernel<Tile, kWarpsM, kWarpsN>, grid_of<Tile>(a), kWarpsM * kWarpsN * kWarp, kBytes,
                stream, a);
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

cudaError_t linear(const Linear& args, cudaStream_t stream) {
  return with_type(args.weight.dtype, [&](auto type) { return choose<decltype(type)>(args, stream); });
}

}  // namespace inkling::cuda
