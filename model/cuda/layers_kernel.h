// The kernel of fused_layers(): a step of decoding as a function over device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/activation.h"
#include "engine/dtype.h"

namespace inkling::cuda {

/// The four products of a layer, in their order.
enum LayerProduct : int { kQkv, kProj, kFc, kFcProj, kProducts };

inline constexpr int kMostFusedLayers = 24;  // their pointers are arguments of the kernel
inline constexpr int kMostFusedRows = 2;     // with more, one kernel an op is as fast
inline constexpr int kFusedWidth = 768;      // C: six fours a lane of a warp that norms a row
inline constexpr int kMostFusedTiles = 4;    // of eight columns, that a block takes of a product
inline constexpr int kMostFusedChunks = 32;  // of keys: one fold
inline constexpr int kFusedDim = 64;

struct FusedNorm {
  const float *gain = nullptr, *shift = nullptr;  ///< (C); shift may be null
};

struct FusedLayer {
  const void* weight[kProducts];  ///< (N, K) rows side by side
  const float* bias[kProducts];   ///< (N) or null
  FusedNorm norm[2];              ///< before kQkv and kFc
};

/// A sequence of the step: its new token, and where its cache is.
struct FusedSequence {
  const std::int32_t* drawn = nullptr;     ///< the token's id, on the device; or null, and
  std::int32_t id = 0;                     ///< …
  std::int32_t length = 0;                 ///< tokens before the new one
  std::byte* page[kMostFusedChunks] = {};  ///< of 64 tokens each, the new one's included
};

/// A step of one token a sequence, from ids to logits. C = 768, D = 64; I is a multiple of 64.
struct FusedLayers {
  FusedLayer layer[kMostFusedLayers];
  DType dtype = DType::bf16;  ///< of weights and cache: bf16 or f16
  int layers = 0, rows = 0;   ///< rows: B
  int inner = 0;              ///< I
  float epsilon = 0;
  Activation activation = Activation::none;
  const void* token = nullptr;  ///< (V, C), rows token_stride apart
  const float* position = nullptr;
  std::int64_t token_stride = 0, position_stride = 0;
  FusedNorm norm;              ///< the last
  const void* head = nullptr;  ///< (V, C) rows side by side
  int vocab = 0;
  float* logits = nullptr;  ///< (B, V)
  std::int64_t logits_stride = 0;
  FusedSequence sequence[kMostFusedRows];
  int chunks = 0;   ///< of keys, the most of a sequence
  float scale = 0;  ///< of scores
  /// Within a page from layer to layer, from head to head, and from a head's keys to its values.
  std::int64_t layer_bytes = 0, head_bytes = 0, k_bytes = 0;
  void* workspace = nullptr;  ///< fused_layers_workspace(): zeros before the first step, then the kernel's
};

std::size_t fused_layers_workspace(const FusedLayers& args);
/// Blocks of the kernel that the current device runs at once; 0: why is the reason.
struct FusedBlocks {
  int count = 0;
  const char* reason = "";
};
/// Asks the driver: to be kept by the caller.
FusedBlocks fused_layers_blocks(const FusedLayers& args);
cudaError_t run_layers(const FusedLayers& args, int blocks, cudaStream_t stream);

}  // namespace inkling::cuda
