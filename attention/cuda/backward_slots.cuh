// What the two kernels of backward_hopper.cuh leave each other in memory, and turns to add to it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cuda/args.h"
#include "engine/cuda/mma.cuh"

namespace inkling::cuda {

/// Queries of a block: as many as leave room for the sums of 64 keys in the registers of a warpgroup.
constexpr int backward_block_queries(int dim) {
  return dim > 64 ? 32 : 64;
}

/// A slot for each head and block of queries of a sequence. kDim: 64, or 128 for heads of more.
template <int kDim>
struct BackwardSlots {
  static constexpr int kQueries = backward_block_queries(kDim);
  static constexpr int kSums = kQueries * kDim, kStats = 2 * kQueries;
  float* sums;           ///< kSums a slot: dQ so far, in the order of the lanes that add
  float* stats;          ///< kStats: lse in base 2 (+inf where weights are zero), then delta
  std::uint32_t* turns;  ///< of a slot: how many tiles have added
  std::uint32_t* taken;  ///< tiles of keys that blocks have taken
  std::int64_t per_head;

  __host__ __device__ explicit BackwardSlots(const BackwardArgs& a)
      : per_head(a.forward.q_rows / kQueries + a.forward.batch) {
    const std::int64_t slots = per_head * a.forward.heads;
    sums = static_cast<float*>(a.workspace);
    stats = sums + slots * kSums;
    turns = reinterpret_cast<std::uint32_t*>(stats + slots * kStats);
    taken = turns + slots;
  }
  static std::size_t bytes(const BackwardArgs& a) {
    const std::int64_t slots =
        (a.forward.q_rows / kQueries + a.forward.batch) * std::int64_t{a.forward.heads};
    return static_cast<std::size_t>(slots * (kSums + kStats + 1) + 4) * 4;
  }
  /// Of a sequence's first block: those of the sequences before it are at most q_begin / kQueries +
  /// sequence.
  __device__ std::int64_t slot(int head, int sequence, int q_begin) const {
    return head * per_head + q_begin / kQueries + sequence;
  }
};

/// Waits until `done` tiles have added. What they wrote can be read after, and added to.
__device__ inline void await_turn(const std::uint32_t* turn, int done) {
  std::uint32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  } while (now != static_cast<std::uint32_t>(done));
}
/// Says that `done` tiles have added.
__device__ inline void pass_turn(std::uint32_t* turn, int done) {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  asm volatile("fence.proxy.async.global;" ::: "memory");
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turn), "r"(done) : "memory");
}
/// Copies sums from shared memory, or adds them to what is there; pass_turn() waits for the end of it. Turns
/// give these additions their order. Shared memory can be written again after.
__device__ inline void send_sums(float* to, const void* from, int bytes, bool add) {
  asm volatile("fence.proxy.async.global;" ::: "memory");
  if (add) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
                 "r"(shared_address(from)), "r"(bytes)
                 : "memory");
  }
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace inkling::cuda
