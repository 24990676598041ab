// What follows the sums of linear_hopper.cu: bias, activation, residual and the writing. Each warp takes the
// 16 rows whose sums it holds, without waiting for the others: through bias and activation in registers, then
// by way of shared memory, so that whole lines are written. What is added last, the residual, is asked for
// before the product begins, where there are registers for it.
#pragma once

#include "engine/cuda/activation.cuh"
#include "engine/cuda/linear_tile.cuh"

namespace inkling::cuda {

/// 16 rows of kColumns outputs, in the registers of a warp as wgmma leaves them.
template <class T, int kColumns>
class HopperFinish {
 public:
  static constexpr int kStride = kColumns + 8;  // elements between rows in shared memory
  using Sums = float[kColumns / 2];

  /// From (row, column) on. A tile is `wide` whose columns are all inside and whose rows begin with whole
  /// pieces of 16 bytes: others are written one by one.
  __device__ HopperFinish(const Linear& a, int row, int column)
      : a_(a),
        row_(row),
        column_(column),
        as_f32_(a.residual.data != nullptr || a.out.dtype == DType::f32),
        wide_(column + kColumns <= a.out.columns && in_whole_pieces(a.out) && in_whole_pieces(a.residual)) {}

  /// Asks for the residual, which kernels before this one may have written.
  __device__ void ask() {
    if constexpr (kEarly) {
      if (a_.residual.data == nullptr || !wide_) return;
#pragma unroll
      for (int i = 0; i < kFours; ++i) residual_[i] = residual(i);
    }
  }
  /// Writes residual + act(sum + bias). `bias`: of these columns, in shared memory. `memory`: the warp's own,
  /// 16 rows of kStride floats.
  __device__ void operator()(const Sums& sums, const float* bias, float* memory) const {
    with_activation(a_.activation, [&](auto activation) {
      if (as_f32_) {
        put<decltype(activation)::value>(sums, bias, memory);
      } else {
        put<decltype(activation)::value>(sums, bias, reinterpret_cast<T*>(memory));
      }
    });
    __syncwarp();
    if (!wide_) {
      write_each(memory);
    } else if (as_f32_) {
      write_f32(memory);
    } else {
      write_pieces(reinterpret_cast<const T*>(memory));
    }
  }

 private:
  static constexpr int kFours = 16 * kColumns / 4 / kWarp;  // of a lane
  static constexpr bool kEarly = kColumns <= 96;
  static_assert(kColumns % 16 == 0);

  static __device__ int lane() {
    return static_cast<int>(threadIdx.x) % kWarp;
  }
  static __device__ bool in_whole_pieces(const Matrix& m) {
    const int per = m.dtype == DType::f32 ? 4 : 8;
    return m.stride % per == 0 && reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
  }
  /// Where the i-th four of a lane lies among the 16 rows.
  static __device__ int row_of_four(int i) {
    return (lane() + kWarp * i) / (kColumns / 4);
  }
  static __device__ int column_of_four(int i) {
    return (lane() + kWarp * i) % (kColumns / 4) * 4;
  }
  __device__ float4 residual(int i) const {
    const int row = row_ + row_of_four(i);
    if (row >= a_.out.rows) return make_float4(0, 0, 0, 0);
    return *reinterpret_cast<const float4*>(cuda::row_of<float>(a_.residual, row) + column_ +
                                            column_of_four(i));
  }

  template <Activation kActivation, class To>
  __device__ static void put(const Sums& sums, const float* bias, To* memory) {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      const float2 b = *reinterpret_cast<const float2*>(bias + 8 * n + 2 * t);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float x = activated(kActivation, sums[4 * n + 2 * half] + b.x),
                    y = activated(kActivation, sums[4 * n + 2 * half + 1] + b.y);
        To* const to = memory + (g + 8 * half) * kStride + 8 * n + 2 * t;
        if constexpr (sizeof(To) == 4) {
          *reinterpret_cast<float2*>(to) = make_float2(x, y);
        } else {
          *reinterpret_cast<std::uint32_t*>(to) = pack2<To>(x, y);
        }
      }
    }
  }
  __device__ void write_f32(const float* memory) const {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int r = row_of_four(i), c = column_of_four(i);
      if (row_ + r >= a_.out.rows) continue;
      const float4 s = *reinterpret_cast<const float4*>(memory + r * kStride + c);
      float4 q = make_float4(0, 0, 0, 0);
      if (a_.residual.data != nullptr) q = kEarly ? residual_[kEarly ? i : 0] : residual(i);
      const float v[4] = {q.x + s.x, q.y + s.y, q.z + s.z, q.w + s.w};
      if (a_.out.dtype == DType::f32) {
        store4(mutable_row<float>(a_.out, row_ + r) + column_ + c, v, 4, true);
      } else {
        store4(mutable_row<T>(a_.out, row_ + r) + column_ + c, v, 4, true);
      }
    }
  }
  __device__ void write_pieces(const T* memory) const {
    constexpr int kAcross = kColumns / 8;
#pragma unroll
    for (int i = lane(); i < 16 * kAcross; i += kWarp) {
      const int r = i / kAcross, c = i % kAcross * 8;
      if (row_ + r >= a_.out.rows) continue;
      *reinterpret_cast<uint4*>(mutable_row<T>(a_.out, row_ + r) + column_ + c) =
          *reinterpret_cast<const uint4*>(memory + r * kStride + c);
    }
  }
  __device__ void write_each(const float* memory) const {
#pragma unroll 1
    for (int i = lane(); i < 16 * kColumns; i += kWarp) {
      const std::int64_t row = row_ + i / kColumns, column = column_ + i % kColumns;
      if (row >= a_.out.rows || column >= a_.out.columns) continue;
      const int at = i / kColumns * kStride + i % kColumns;
      float v = as_f32_ ? memory[at] : to_float(reinterpret_cast<const T*>(memory)[at]);
      if (a_.residual.data != nullptr) v += cuda::row_of<float>(a_.residual, row)[column];
      if (a_.out.dtype == DType::f32) {
        mutable_row<float>(a_.out, row)[column] = v;
      } else {
        mutable_row<T>(a_.out, row)[column] = from_float<T>(v);
      }
    }
  }

  const Linear& a_;
  const int row_, column_;
  const bool as_f32_, wide_;
  float4 residual_[kEarly ? kFours : 1];
};

}  // namespace inkling::cuda
