// Products of 16-row tiles by one warp, mma.sync (sm_80 upward), and the fragments they want.
//
// Lane 4g + t of a warp holds, of a 16 × 8 accumulator, c[0], c[1] = (row g, columns 2t, 2t+1) and c[2], c[3]
// the same of row g + 8. Mma<T>::A is a 16 × kK block of the left operand, B a kK × 8 block of the right one.
//   bf16, f16  m16n8k16; fragments by ldmatrix.
//   f32        three tf32 products m16n8k8 of x = big + small (big, small: 11 bits each): big·big + big·small
//   +
//              small·big drops terms under 2⁻²² of the product, so this is f32 and not "tf32".
// A weight fragment comes straight from accumulators (from_weights): the product runs over keys, whose order
// within a k-step is free, so for f32 step column t means key 2t and column t + 4 key 2t + 1, on both sides.
// Longer than a header: three element types, each with its fragments.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace inkling::cuda {

constexpr int kWarp = 32;

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void ldmatrix_x4(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ inline void ldmatrix_x2(std::uint32_t (&r)[2], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address));
}

__device__ inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

template <class T>
__device__ inline std::uint32_t pack2(float low, float high);
template <>
__device__ inline std::uint32_t pack2<__nv_bfloat16>(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ inline std::uint32_t pack2<__half>(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

/// 16-bit element types.
template <class T>
struct Mma {
  static constexpr int kK = 16;   // depth of a step
  static constexpr int kPad = 8;  // elements added to a shared row, so that eight rows meet 32 banks
  struct A {
    std::uint32_t r[4];
  };
  struct B {
    std::uint32_t r[2];
  };

  /// The 16 × 16 block at (row, column) of a row-major tile.
  static __device__ void load_a(A& a, const T* tile, int stride, int row, int column) {
    const int lane = threadIdx.x % kWarp;
    ldmatrix_x4(a.r, shared_address(tile + (row + lane % 16) * stride + column + lane / 16 * 8));
  }
  /// Two blocks, right[k][n] = tile[n0 + n][k0 + k], n < 16.
  static __device__ void load_b_rows(B (&b)[2], const T* tile, int stride, int n0, int k0) {
    const int lane = threadIdx.x % kWarp;
    std::uint32_t r[4];
    ldmatrix_x4(r, shared_address(tile + (n0 + lane / 16 * 8 + lane % 8) * stride + k0 + lane / 8 % 2 * 8));
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }
  /// One block, right[k][n] = tile[n][k0 + k], n < 8.
  static __device__ void load_b_eight(B& b, const T* tile, int stride, int k0) {
    const int lane = threadIdx.x % kWarp;
    ldmatrix_x2(b.r, shared_address(tile + lane % 8 * stride + k0 + lane / 8 % 2 * 8));
  }
  /// Two blocks, right[k][n] = tile[k0 + k][n0 + n], n < 16.
  static __device__ void load_b_columns(B (&b)[2], const T* tile, int stride, int k0, int n0) {
    const int lane = threadIdx.x % kWarp;
    std::uint32_t r[4];
    ldmatrix_x4_trans(r, shared_address(tile + (k0 + lane % 16) * stride + n0 + lane / 16 * 8));
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }
  /// Weights of 16 keys: two accumulators side by side.
  static __device__ void from_weights(A& a, const float (*c)[4]) {
    a.r[0] = pack2<T>(c[0][0], c[0][1]);
    a.r[1] = pack2<T>(c[0][2], c[0][3]);
    a.r[2] = pack2<T>(c[1][0], c[1][1]);
    a.r[3] = pack2<T>(c[1][2], c[1][3]);
  }
  static __device__ void multiply(float (&c)[4], const A& a, const B& b);
};

template <>
__device__ inline void Mma<__nv_bfloat16>::multiply(float (&c)[4], const A& a, const B& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}
template <>
__device__ inline void Mma<__half>::multiply(float (&c)[4], const A& a, const B& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

/// x = big + small up to 2⁻²² x.
struct Tf32Pair {
  std::uint32_t big, small;
};
__device__ inline Tf32Pair split_tf32(float x) {
  Tf32Pair pair;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(pair.big) : "f"(x));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(pair.small) : "f"(x - __uint_as_float(pair.big)));
  return pair;
}
__device__ inline void multiply_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                     const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
struct Mma<float> {
  static constexpr int kK = 8;
  static constexpr int kPad = 4;
  struct A {
    float v[4];
  };
  struct B {
    float v[2];
  };

  static __device__ void load_a(A& a, const float* tile, int stride, int row, int column) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const float* at = tile + (row + g) * stride + column + t;
    a = {{at[0], at[8 * stride], at[4], at[8 * stride + 4]}};
  }
  static __device__ void load_b_rows(B (&b)[2], const float* tile, int stride, int n0, int k0) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const float* at = tile + (n0 + g) * stride + k0 + t;
    b[0] = {{at[0], at[4]}};
    b[1] = {{at[8 * stride], at[8 * stride + 4]}};
  }
  static __device__ void load_b_eight(B& b, const float* tile, int stride, int k0) {
    const float* at = tile + threadIdx.x % kWarp / 4 * stride + k0 + threadIdx.x % 4;
    b = {{at[0], at[4]}};
  }
  static __device__ void load_b_columns(B (&b)[2], const float* tile, int stride, int k0, int n0) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const float* at = tile + (k0 + 2 * t) * stride + n0 + g;
    b[0] = {{at[0], at[stride]}};
    b[1] = {{at[8], at[stride + 8]}};
  }
  /// Weights of 8 keys: one accumulator.
  static __device__ void from_weights(A& a, const float (*c)[4]) {
    a = {{c[0][0], c[0][2], c[0][1], c[0][3]}};
  }
  static __device__ void multiply(float (&c)[4], const A& a, const B& b) {
    std::uint32_t a_big[4], a_small[4], b_big[2], b_small[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Tf32Pair pair = split_tf32(a.v[i]);
      a_big[i] = pair.big;
      a_small[i] = pair.small;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Tf32Pair pair = split_tf32(b.v[i]);
      b_big[i] = pair.big;
      b_small[i] = pair.small;
    }
    multiply_tf32(c, a_small, b_big);
    multiply_tf32(c, a_big, b_small);
    multiply_tf32(c, a_big, b_big);
  }
};

/// c (16 × 8·kTiles) += rows [row, row + 16) of `left` × transposed rows [0, 8·kTiles) of `right`, over
/// kDepth columns.
template <class T, int kDepth, int kTiles>
__device__ inline void multiply_rows(float (&c)[kTiles][4], const T* left, int row, const T* right,
                                     int stride) {
#pragma unroll(kDepth > 128 ? 1 : kDepth / Mma <T>::kK)
  for (int k = 0; k < kDepth; k += Mma<T>::kK) {
    typename Mma<T>::A a;
    Mma<T>::load_a(a, left, stride, row, k);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      typename Mma<T>::B b[2];
      Mma<T>::load_b_rows(b, right, stride, n * 8, k);
      Mma<T>::multiply(c[n], a, b[0]);
      Mma<T>::multiply(c[n + 1], a, b[1]);
    }
  }
}

/// c (16 × 8·kTiles) += weights (16 × 8·kKeys, accumulators) × rows [0, 8·kKeys) of `right` from column
/// `column` on.
template <class T, int kKeys, int kTiles>
__device__ inline void multiply_weights(float (&c)[kTiles][4], const float (&weights)[kKeys][4],
                                        const T* right, int stride, int column) {
  constexpr int kStep = Mma<T>::kK / 8;
#pragma unroll
  for (int j = 0; j < kKeys; j += kStep) {
    typename Mma<T>::A a;
    Mma<T>::from_weights(a, &weights[j]);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      typename Mma<T>::B b[2];
      Mma<T>::load_b_columns(b, right, stride, j * 8, column + n * 8);
      Mma<T>::multiply(c[n], a, b[0]);
      Mma<T>::multiply(c[n + 1], a, b[1]);
    }
  }
}

}  // namespace inkling::cuda
