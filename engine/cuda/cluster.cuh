// From block to block of a cluster (compute capability 9.0): words that one leaves in another's shared memory
// and an mbarrier there that counts their bytes. PTX ISA 8.1, "st.async".
#pragma once

#include "engine/cuda/mma.cuh"

namespace inkling::cuda {

/// The shared address of `p` as block `rank` of the cluster has it.
__device__ inline std::uint32_t cluster_address(const void* p, int rank) {
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}

/// Leaves words at a shared address of another block, whose `barrier` counts their bytes.
__device__ inline void put_cluster(std::uint32_t to, std::uint32_t barrier, std::uint32_t word) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
               "r"(word), "r"(barrier)
               : "memory");
}
__device__ inline void put_cluster(std::uint32_t to, std::uint32_t barrier, float2 words) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "f"(words.x), "f"(words.y), "r"(barrier)
               : "memory");
}

}  // namespace inkling::cuda
