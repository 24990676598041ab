// Kernels that overlap with the one before them in their stream (programmatic dependent launch, compute
// capability 9.0): blocks start while the last kernel still runs, read what was written long before, and wait
// only before they touch anything else. launch_chained() launches them; elsewhere both calls are nothing.
//
// The kernel before may itself have begun while the one before that ran, and so on. So the rule: between an
// op that writes what a kernel reads before wait_for_inputs(), and that kernel, lies an op of the stream that
// is not chained (a copy, a launch(), the beginning of a graph), or the kernel is launched Start::in_turn.
// What is read early, who writes it, and what lies between:
//
//   weights, biases, norms   pack(), when a model is loaded    the copy of a batch's lists
//   the same in training     AdamW                             nothing: readers begin in turn, or wait first
//   lists of a step          a copy                            the copy itself
//   old keys and values      the step before                   the copy of the step's lists
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
