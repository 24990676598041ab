// The Hopper instructions (sm_90a) that the forward kernel is made of: wgmma, mbarriers, tensor copies. PTX
// ISA 8.0, "Asynchronous Warpgroup Level Matrix Instructions" and "Data Movement: cp.async.bulk.tensor".
//
// A shared tile is rows of 128 bytes (64 for D = 32), swizzled by the copy engine: the 16-byte piece p of row
// r lies at p ^ (r % 8) (for 64 bytes: p ^ (r / 2 % 4)). Tiles start at multiples of 1024 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "attention/cuda/mma.cuh"

namespace inkling::cuda {

/// What a wgmma is told of a swizzled tile in shared memory: its address, the bytes between groups of eight
/// rows
/// (`stride`), and, when the product's columns run along the row, between 64-column halves (`leading`).
__device__ inline std::uint64_t matrix_descriptor(std::uint32_t address, int row_bytes,
                                                  std::uint32_t leading) {
  const std::uint64_t swizzle = row_bytes == 128 ? 1 : 2;
  return (swizzle << 62) | (std::uint64_t{static_cast<std::uint32_t>(row_bytes) * 8 / 16} << 32) |
         (std::uint64_t{leading / 16} << 16) | ((address & 0x3ffff) / 16);
}

__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving uses of an accumulator across a wait.
template <int kCount>
__device__ inline void hold(float (&c)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

#define INKLING_C4(c, i) "+f"((c)[i]), "+f"((c)[i + 1]), "+f"((c)[i + 2]), "+f"((c)[i + 3])
#define INKLING_C16(c, i) INKLING_C4(c, i), INKLING_C4(c, i + 4), INKLING_C4(c, i + 8), INKLING_C4(c, i + 12)
#define INKLING_R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define INKLING_R32 INKLING_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define INKLING_R64                                                                                       \
  INKLING_R32                                                                                             \
      ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
      "%56,%57,%58,%59,%60,%61,%62,%63"
#define INKLING_WGMMA(n, type, registers, at0, at1, at2, at3, at_b, at_add, at_layout, ...)               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" at_add ", 0;\nwgmma.mma_async.sync.aligned.m64n" n    \
               "k16.f32." type "." type " {" registers "}, {%" at0 ",%" at1 ",%" at2 ",%" at3 "}, %" at_b \
               ", p, 1, 1, %" at_layout ";\n}"                                                            \
               : __VA_ARGS__                                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kByColumn))

/// c (64 × N, N / 2 registers a lane) = a × B, or += with `add`. a: 64 × 16 in registers, laid out like
/// Mma<T>::A in each warp. B: 16 × N in shared memory; kByColumn 0: stored as N rows of 16, 1: as 16 rows of
/// N.
template <class T, int kByColumn>
__device__ inline void wgmma(float (&c)[16], const std::uint32_t (&a)[4], std::uint64_t b, int add) {
  if constexpr (__is_same(T, __half)) {
    INKLING_WGMMA("32", "f16", INKLING_R16, "16", "17", "18", "19", "20", "21", "22", INKLING_C16(c, 0));
  } else {
    INKLING_WGMMA("32", "bf16", INKLING_R16, "16", "17", "18", "19", "20", "21", "22", INKLING_C16(c, 0));
  }
}
template <class T, int kByColumn>
__device__ inline void wgmma(float (&c)[32], const std::uint32_t (&a)[4], std::uint64_t b, int add) {
  if constexpr (__is_same(T, __half)) {
    INKLING_WGMMA("64", "f16", INKLING_R32, "32", "33", "34", "35", "36", "37", "38", INKLING_C16(c, 0),
                  INKLING_C16(c, 16));
  } else {
    INKLING_WGMMA("64", "bf16", INKLING_R32, "32", "33", "34", "35", "36", "37", "38", INKLING_C16(c, 0),
                  INKLING_C16(c, 16));
  }
}
template <class T, int kByColumn>
__device__ inline void wgmma(float (&c)[64], const std::uint32_t (&a)[4], std::uint64_t b, int add) {
  if constexpr (__is_same(T, __half)) {
    INKLING_WGMMA("128", "f16", INKLING_R64, "64", "65", "66", "67", "68", "69", "70", INKLING_C16(c, 0),
                  INKLING_C16(c, 16), INKLING_C16(c, 32), INKLING_C16(c, 48));
  } else {
    INKLING_WGMMA("128", "bf16", INKLING_R64, "64", "65", "66", "67", "68", "69", "70", INKLING_C16(c, 0),
                  INKLING_C16(c, 16), INKLING_C16(c, 32), INKLING_C16(c, 48));
  }
}
#undef INKLING_C4
#undef INKLING_C16
#undef INKLING_R16
#undef INKLING_R32
#undef INKLING_R64
#undef INKLING_WGMMA

__device__ inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
__device__ inline void barrier_expect(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Waits until the phase of this parity is over.
__device__ inline void barrier_wait(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra "
      "again;\n"
      "done:\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// Ordinary writes to shared memory, before the tensor cores or the copy engine read them.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// A barrier of one warpgroup.
__device__ inline void group_sync(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}
/// A box of a (rows, heads, D) tensor, from (column, head, row) on, into shared memory; completes on
/// `barrier`.
__device__ inline void copy_box(void* to, const void* map, std::uint64_t* barrier, int column, int head,
                                int row) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(row)
      : "memory");
}

}  // namespace inkling::cuda
