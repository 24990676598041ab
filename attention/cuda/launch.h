// The attention kernels as plain functions over device memory. Each enqueues on `stream` and returns the
// first error; none allocates or synchronises, so all can be captured into a graph. Arguments have been
// checked by sdpa.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "attention/cuda/args.h"

namespace inkling::cuda {

/// What the launchers need to know of the device; filled once.
struct DeviceTraits {
  int ordinal = 0;
  std::string_view no_hopper;        ///< cuda_hopper_refusal(): "" where the kernels of Hopper run
  int processors = 0;                ///< streaming multiprocessors
  std::size_t shared_per_block = 0;  ///< most bytes of shared memory of a block, when asked for
};
cudaError_t read_traits(int ordinal, DeviceTraits& traits);

/// Query rows of a tile of the forward kernels below. One list serves both kernels.
constexpr std::int32_t forward_tile_rows(DType dtype) noexcept {
  return dtype == DType::f32 ? 64 : 128;
}
/// Rows of a tile, queries or keys, of the backward kernels.
constexpr std::int32_t backward_tile_rows(DType dtype, std::int32_t dim) noexcept {
  return dtype == DType::f32 ? (dim > 128 ? 32 : 64) : (dim > 128 ? 64 : 128);
}

/// Flash attention by mma.sync: every mask, dropout, packed or paged keys, any D ≤ 256.
cudaError_t forward_mma(const ForwardArgs& args, const DeviceTraits& traits, cudaStream_t stream);

/// "" when forward_hopper() can run these arguments on this device, else why not, with the values.
std::string hopper_refusal(const ForwardArgs& args, const DeviceTraits& traits);
/// Flash attention by wgmma and the bulk tensor copy engine (compute capability 9.0).
cudaError_t forward_hopper(const ForwardArgs& args, const DeviceTraits& traits, cudaStream_t stream);

/// Whether the Hopper kernels, forward and backward, read what dropout keeps from its memory: once drawn it
/// serves three times.
inline bool reads_drawn(const ForwardArgs& args) noexcept {
  return args.dropout.drawn != nullptr && args.dim <= kMostDrawnDim;
}
/// Draws it, of the tiles of forward_hopper().
cudaError_t draw_dropout(const ForwardArgs& args, cudaStream_t stream);

/// Keys of one partial result of the decode kernel: part of the definition of its bits. A page.
inline constexpr std::int32_t kDecodeChunk = 64;
/// Most query rows (Tq · H / Hkv) of a sequence that decode takes.
inline constexpr std::int32_t kDecodeMostRows = 16;
struct DecodeShape {
  std::int32_t most_rows = 1;  ///< the largest Tq · H / Hkv of the batch
  std::int32_t most_keys = 0;  ///< at least the largest Tk
};
struct DecodeWorkspace {
  void* partials = nullptr;          ///< decode_workspace_bytes()
  unsigned int* counters = nullptr;  ///< (B, Hkv), zero before the first call, and again after each
};
std::size_t decode_workspace_bytes(const ForwardArgs& args, const DecodeShape& shape);
/// Split-KV attention for few queries: reads K and V once. Every mask, no dropout. Packed or paged keys; puts
/// fresh rows into their pages on the way. Sequences of more than kDecodeMostRows are left alone.
cudaError_t decode(const ForwardArgs& args, const DecodeShape& shape, const DecodeWorkspace& workspace,
                   const DeviceTraits& traits, cudaStream_t stream);

/// Attention as it is written down, in f64: every mask, dropout, packed or paged keys, any D ≤ 256.
cudaError_t math(const ForwardArgs& args, const MathWorkspace& workspace, cudaStream_t stream);
/// Its gradients, of packed keys; those of a bias that is broadcast too.
cudaError_t backward_math(const ForwardArgs& args, const MathGradients& gradients,
                          const MathWorkspace& workspace, cudaStream_t stream);

/// Writes new keys and values into their pages.
cudaError_t append(const AppendArgs& args, cudaStream_t stream);

/// "" when backward() takes its Hopper kernels for these arguments on this device, else why not.
std::string backward_hopper_refusal(const BackwardArgs& args, const DeviceTraits& traits);
/// What backward() wants in args.workspace for these arguments on this device.
std::size_t backward_workspace_bytes(const BackwardArgs& args, const DeviceTraits& traits);
/// Gradients, each element of dq, dk and dv a sum in one fixed order. What args.workspace held does not
/// matter. Two calls at once want two workspaces.
cudaError_t backward(const BackwardArgs& args, const DeviceTraits& traits, cudaStream_t stream);

}  // namespace inkling::cuda
