// What the kernels of decode are told beside their arguments, and how its launchers divide the work.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda/launch.h"

namespace inkling::cuda {

struct DecodePlan {
  float2* stats;           // (B, Hkv, rows, chunks) maximum and sum
  float* values;           // (B, Hkv, rows, chunks, padded D)
  unsigned int* counters;  // (B, Hkv) what has arrived
  int chunks, rows;        // of the workspace
  int run;                 // of decode_kernel: chunks of a warp, a matter of speed and not of bits
  bool wide, paired;       // keys and queries in 16 bytes, outputs in pairs
};

/// Whether decode_few() takes these arguments. It gives the bits of decode_kernel, so that a sequence may be
/// in a batch of either.
bool decodes_few(const ForwardArgs& args, const DecodePlan& plan, const DeviceTraits& traits);
cudaError_t decode_few(const ForwardArgs& args, const DecodePlan& plan, const DeviceTraits& traits,
                       cudaStream_t stream);

}  // namespace inkling::cuda
