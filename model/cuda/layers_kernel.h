// The kernel of fused_layers() as a function over device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "attention/cuda/args.h"
#include "engine/activation.h"

namespace inkling::cuda {

/// The four products of a layer, in their order.
enum LayerProduct : int { kQkv, kProj, kFc, kFcProj, kProducts };

inline constexpr int kMostFusedLayers = 24;  // their pointers are arguments of the kernel
inline constexpr int kMostFusedRows = 2;     // with more, one kernel an op is as fast
inline constexpr int kFusedWidth = 768;      // C: six fours a lane of a warp that norms a row
inline constexpr int kMostFusedTiles = 3;    // of eight columns, that a block takes of a product
inline constexpr int kMostFusedChunks = 32;  // of keys: one fold
inline constexpr int kFusedDim = 64;

struct FusedLayer {
  const void* weight[kProducts];    ///< (N, K) rows side by side
  const float* bias[kProducts];     ///< (N) or null
  const float *gain[2], *shift[2];  ///< (C) of the norms before kQkv and kFc; shift may be null
};

/// All layers of a step of one token a sequence. C = 768, D = 64; I is a multiple of 64.
struct FusedLayers {
  FusedLayer layer[kMostFusedLayers];
  int layers = 0, rows = 0;  ///< rows: B
  int inner = 0;             ///< I
  float epsilon = 0;
  Activation activation = Activation::none;
  const float* x = nullptr;  ///< (B, C)
  float* out = nullptr;      ///< (B, C)
  std::int64_t x_stride = 0, out_stride = 0;
  ForwardArgs attention;  ///< the cache and its mask; q, k, v and out are the kernel's own
  std::int64_t layer_bytes = 0;
  const std::int32_t* length = nullptr;  ///< (B) tokens before the step's
  int chunks = 0;                        ///< at least those of the longest sequence
  void* workspace = nullptr;  ///< fused_layers_workspace(): zeros before the first step, then the kernel's
};

std::size_t fused_layers_workspace(const FusedLayers& args);
/// "" when the current device, of `processors`, can run these arguments, else why not.
const char* fused_layers_device_refusal(const FusedLayers& args, int processors);
cudaError_t run_layers(const FusedLayers& args, int processors, cudaStream_t stream);

}  // namespace inkling::cuda
