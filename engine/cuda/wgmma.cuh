// The Hopper instructions (sm_90a): wgmma, mbarriers, tensor copies, clusters. PTX
// ISA 8.0, "Asynchronous Warpgroup Level Matrix Instructions" and "Data Movement: cp.async.bulk.tensor".
//
// A shared tile is rows of 128 bytes (64 for D = 32), swizzled by the copy engine: the 16-byte piece p of row
// r lies at p ^ (r % 8) (for 64 bytes: p ^ (r / 2 % 4)). Tiles start at multiples of 1024 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "engine/cuda/mma.cuh"

namespace inkling::cuda {

/// What a wgmma is told of a swizzled tile in shared memory. Low word: its address and, when the product's
/// columns run along the row, the bytes between 64-column halves (`leading`), both in 16 bytes; the high
/// word, which is constant: the bytes between groups of eight rows, and the swizzle.
__device__ inline std::uint32_t matrix_low(const void* tile, int leading) {
  return (static_cast<std::uint32_t>(leading) / 16 << 16) | shared_address(tile) / 16;
}
template <int kRowBytes>
constexpr std::uint32_t kMatrixHigh = (kRowBytes == 128 ? 1u : 2u) << 30 | kRowBytes * 8 / 16;

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
#define INKLING_R48 INKLING_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define INKLING_R64                                                                                   \
  INKLING_R32                                                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63"
#define INKLING_R72 INKLING_R64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define INKLING_R96                                                                                   \
  INKLING_R64                                                                                         \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87," \
  "%88,%89,%90,%91,%92,%93,%94,%95"
#define INKLING_R128                                                                                      \
  INKLING_R96                                                                                             \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116" \
  ",%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define INKLING_OPCODE(n, type, registers) \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers "}, "

#define INKLING_WGMMA_OF(count, n, registers, a0, a1, a2, a3, low, high, add, layout, ...)                 \
  template <class T, int kRowBytes, int kByColumn>                                                         \
  __device__ inline void wgmma(float(&c)[count], const std::uint32_t(&a)[4], std::uint32_t b,              \
                               int accumulate) {                                                           \
    if constexpr (__is_same(T, __half)) {                                                                  \
      asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %" add ", 0;\nmov.b64 b, {%" low        \
                   ", %" high "};\n" INKLING_OPCODE(n, "f16", registers) "{%" a0 ",%" a1 ",%" a2 ",%" a3   \
                                                                         "}, b, p, 1, 1, %" layout ";\n}"  \
                   : __VA_ARGS__                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(kMatrixHigh<kRowBytes>),      \
                     "r"(accumulate), "n"(kByColumn));                                                     \
    } else {                                                                                               \
      asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %" add ", 0;\nmov.b64 b, {%" low        \
                   ", %" high "};\n" INKLING_OPCODE(n, "bf16", registers) "{%" a0 ",%" a1 ",%" a2 ",%" a3  \
                                                                          "}, b, p, 1, 1, %" layout ";\n}" \
                   : __VA_ARGS__                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(kMatrixHigh<kRowBytes>),      \
                     "r"(accumulate), "n"(kByColumn));                                                     \
    }                                                                                                      \
  }                                                                                                        \
  template <class T, int kRowBytes, int kByColumn, int kByColumnA = 0>                                     \
  __device__ inline void wgmma(float(&c)[count], std::uint32_t a, std::uint32_t b, int accumulate) {       \
    if constexpr (__is_same(T, __half)) {                                                                  \
      asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %" a3 ", 0;\nmov.b64 a, {%" a0       \
                   ", %" a2 "};\nmov.b64 b, {%" a1 ", %" a2                                                \
                   "};\n" INKLING_OPCODE(n, "f16", registers) "a, b, p, 1, 1, %" high ", %" low ";\n}"     \
                   : __VA_ARGS__                                                                           \
                   : "r"(a), "r"(b), "r"(kMatrixHigh<kRowBytes>), "r"(accumulate), "n"(kByColumn),         \
                     "n"(kByColumnA));                                                                     \
    } else {                                                                                               \
      asm volatile("{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %" a3 ", 0;\nmov.b64 a, {%" a0       \
                   ", %" a2 "};\nmov.b64 b, {%" a1 ", %" a2                                                \
                   "};\n" INKLING_OPCODE(n, "bf16", registers) "a, b, p, 1, 1, %" high ", %" low ";\n}"    \
                   : __VA_ARGS__                                                                           \
                   : "r"(a), "r"(b), "r"(kMatrixHigh<kRowBytes>), "r"(accumulate), "n"(kByColumn),         \
                     "n"(kByColumnA));                                                                     \
    }                                                                                                      \
  }

// c (64 × N, N / 2 registers a lane) = a × B, or += with `accumulate`. B: 16 × N in a shared tile; kByColumn
// 0: stored as N rows of 16, 1: as 16 rows of N. a: 64 × 16, in registers laid out like Mma<T>::A in each
// warp, or in a tile, as 64 rows of 16 or with kByColumnA as 16 rows of 64.
INKLING_WGMMA_OF(16, "32", INKLING_R16, "16", "17", "18", "19", "20", "21", "22", "23", INKLING_C16(c, 0))
INKLING_WGMMA_OF(32, "64", INKLING_R32, "32", "33", "34", "35", "36", "37", "38", "39", INKLING_C16(c, 0),
                 INKLING_C16(c, 16))
INKLING_WGMMA_OF(48, "96", INKLING_R48, "48", "49", "50", "51", "52", "53", "54", "55", INKLING_C16(c, 0),
                 INKLING_C16(c, 16), INKLING_C16(c, 32))
INKLING_WGMMA_OF(64, "128", INKLING_R64, "64", "65", "66", "67", "68", "69", "70", "71", INKLING_C16(c, 0),
                 INKLING_C16(c, 16), INKLING_C16(c, 32), INKLING_C16(c, 48))
INKLING_WGMMA_OF(72, "144", INKLING_R72, "72", "73", "74", "75", "76", "77", "78", "79", INKLING_C16(c, 0),
                 INKLING_C16(c, 16), INKLING_C16(c, 32), INKLING_C16(c, 48), INKLING_C4(c, 64),
                 INKLING_C4(c, 68))
INKLING_WGMMA_OF(96, "192", INKLING_R96, "96", "97", "98", "99", "100", "101", "102", "103",
                 INKLING_C16(c, 0), INKLING_C16(c, 16), INKLING_C16(c, 32), INKLING_C16(c, 48),
                 INKLING_C16(c, 64), INKLING_C16(c, 80))
INKLING_WGMMA_OF(128, "256", INKLING_R128, "128", "129", "130", "131", "132", "133", "134", "135",
                 INKLING_C16(c, 0), INKLING_C16(c, 16), INKLING_C16(c, 32), INKLING_C16(c, 48),
                 INKLING_C16(c, 64), INKLING_C16(c, 80), INKLING_C16(c, 96), INKLING_C16(c, 112))
#undef INKLING_C4
#undef INKLING_C16
#undef INKLING_R16
#undef INKLING_R32
#undef INKLING_R48
#undef INKLING_R64
#undef INKLING_R72
#undef INKLING_R96
#undef INKLING_R128
#undef INKLING_OPCODE
#undef INKLING_WGMMA_OF

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
/// One thread, after it has initialised barriers: for the copy engine and the other blocks of a cluster to
/// see.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Ordinary writes to shared memory, before the tensor cores or the copy engine read them.
__device__ inline void fence_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Moves registers between warpgroups: those that need few give before others take.
template <int kCount>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
/// A barrier of all blocks of a cluster; what they wrote to shared memory before can be read after.
__device__ inline void cluster_sync() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Four floats at `p` in the shared memory of block `rank` of the cluster.
__device__ inline float4 read_cluster(const float* p, int rank) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(p)), "r"(rank)
      : "memory");
  return v;
}
/// A barrier of one warpgroup.
__device__ inline void group_sync(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}
/// `bytes` side by side, a multiple of 16 as both addresses are, into shared memory; completes on `barrier`.
__device__ inline void copy_bulk(void* to, const void* from, int bytes, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
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
