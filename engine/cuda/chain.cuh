// Kernels that overlap with the one before them in their stream (programmatic dependent launch, compute
// capability 9.0): blocks start while the last kernel still runs, read what no kernel of the stream writes
// (weights), and wait only before they touch anything else. launch_chained() launches them; elsewhere both
// calls are nothing.
#pragma once

namespace inkling::cuda {

/// Lets the next kernel start as soon as every block of this one has come here.
__device__ inline void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the kernels before this one are over and what they wrote can be read. Every block calls it,
/// for the kernel after this one relies on it.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace inkling::cuda
