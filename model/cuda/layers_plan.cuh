// How the blocks of the kernel of all layers share its work, and where things are.
#pragma once

#include "attention/cuda/decode_tile.cuh"
#include "engine/cuda/linear_few.cuh"
#include "engine/cuda/tagged.cuh"
#include "model/cuda/layers_kernel.h"

namespace inkling::cuda {

constexpr int kProductWarps = kMostFusedTiles * kRuns, kAttentionWarps = 2;
constexpr int kProductThreads = kProductWarps * kWarp;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kThreads = kProductThreads + kAttentionThreads + kWarp;  // and the warp that asks for weights
constexpr int kTileColumns = 8, kTilePairs = kTileColumns / 2;
constexpr int kHeads = kFusedWidth / kFusedDim;
constexpr int kHeld = kFusedWidth / (4 * kWarp);

/// Whether a product reads the stream through a norm and writes rows of 16 bits; the others read such rows
/// and add to the stream.
__device__ constexpr bool reads_stream(int product) {
  return product == kQkv || product == kFc;
}

/// A product as the blocks share it. Shared memory in bytes; the workspace in pairs of tagged words.
struct ProductShape {
  int k, n;
  int first;          // the block of the first tile
  int weights, bias;  // where they are in shared memory
  int norm;           // of reads_stream(): where gain and then shift are
  int from, to;       // rows in the workspace
  int residual;       // of the others: those of the stream that they are added to
  int row;            // pairs of a row of `from`
};

struct LayersPlan {
  ProductShape product[kProducts];
  int stream, x, sums, chunks, bytes;  // in shared memory, behind the weights: rows of the stream and of x …
  int qkv, attended, partials;         // in the workspace
  int pairs;                           // of the workspace
};

/// The first words of the workspace.
struct LayersHead {
  std::uint32_t time;     // tag of the last layer of the last step
  std::uint32_t leaving;  // blocks that are done
  std::uint32_t unused[2];
};

/// Pairs of words of one chunk's result: maximum and sum, then the values.
constexpr int kPartialPairs = 1 + kFusedDim / 2;

/// The workspace behind its head.
__device__ inline TaggedPair* words_of(const FusedLayers& a) {
  return reinterpret_cast<TaggedPair*>(static_cast<LayersHead*>(a.workspace) + 1);
}

}  // namespace inkling::cuda
