// How the blocks of the kernel of a step share its work, and where things are.
#pragma once

#include "attention/cuda/decode_tile.cuh"
#include "engine/cuda/linear_few.cuh"
#include "engine/cuda/tagged.cuh"
#include "model/cuda/layers_kernel.h"

namespace inkling::cuda {

// Warps of a block: one for each run of k, one that adds the runs, two that attend, one that asks for
// weights.
constexpr int kAttentionWarps = 2;
constexpr int kRunThreads = kRuns * kWarp;
constexpr int kThreads = kRunThreads + kWarp + kAttentionWarps * kWarp + kWarp;
constexpr int kTileColumns = 8, kTilePairs = kTileColumns / 2;
constexpr int kHeads = kFusedWidth / kFusedDim;
constexpr int kHeadBlocks = kFusedDim / kTileColumns;  // a cluster: the blocks of one head
/// Cycles that a word takes until another block can see it, less than a question takes. 200 to 600 are as
/// good as each other.
constexpr unsigned kUnderWay = 400;
constexpr int kSums = kRuns * kMostFusedTiles * kMostFusedRows * kTileColumns;

/// Whether a product reads the stream through a norm and writes rows of 16 bits; the others read such rows
/// and add to the stream.
__host__ __device__ constexpr bool reads_stream(int product) {
  return product == kQkv || product == kFc;
}

/// A product as the blocks share it. Shared memory in bytes; the workspace in pairs of tagged words.
struct ProductShape {
  int k, n;
  int first;          // the block of the first tile
  int weights, bias;  // where they are in shared memory
  int norm;           // of reads_stream(): where gain and then shift are
  int from, to;       // rows in the workspace
};

/// The weights of the head go through shared memory in groups of tiles, where those of the layers were.
constexpr int kSlots = 3;
template <class T>
__host__ __device__ constexpr int slot_offset(int slot) {
  return slot * kMostFusedTiles * kTileColumns * FewTile<T, kTileColumns>::stride(kFusedWidth) *
         static_cast<int>(sizeof(T));
}

struct LayersPlan {
  ProductShape product[kProducts];
  unsigned covers[kSlots];  // products whose weights lie where the slot does, a bit each
  int stream, x, run;       // in shared memory: rows of the stream; of x, `run` elements from run to run
  int sums, chunks, bytes;  // …
  int zeroed, weights;      // the weights, and then biases and norms
  int pairs;                // of the workspace
};

/// A block's tiles of a product: first, first + step, … The tiles of queries, keys and values of a head are
/// those of its cluster, three a block: block i has the i-th of each.
struct Tiles {
  int first, count, step;
  __device__ int column(int tile) const { return (first + tile * step) * kTileColumns; }
};

/// The plan as a block has it in shared memory.
struct BlockPlan : LayersPlan {
  Tiles tiles[kProducts];

  __device__ void share_out(int product) {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    if (product == kQkv) {
      constexpr int kAll = kHeads * kHeadBlocks;
      tiles[product] = {block, block < kAll ? 3 : 0, kAll};
      return;
    }
    const int all = this->product[product].n / kTileColumns;
    int first = block - this->product[product].first;
    first += first < 0 ? blocks : 0;
    tiles[product] = {first, first < all ? (all - 1 - first) / blocks + 1 : 0, blocks};
  }
};

/// The first words of the workspace.
struct LayersHead {
  std::uint32_t time;     // tag of the last layer of the last step
  std::uint32_t leaving;  // blocks that are done
  std::uint32_t unused[2];
};

/// What blocks of a head leave in each other's shared memory: the new token's query, key and value, and of
/// every chunk of keys the maximum, the sum and the values of the eight columns that the block folds.
template <class T, int kRows>
struct HeadExchange {
  T made[kRows][3][kFusedDim];
  float2 stat[kRows][kMostFusedChunks];
  float value[kRows][kMostFusedChunks][kTileColumns];
  std::uint64_t made_here, chunks_here;

  static constexpr int kMadeBytes = kRows * 3 * kFusedDim * static_cast<int>(sizeof(T));
  static constexpr int kChunkBytes = (2 + kTileColumns) * static_cast<int>(sizeof(float));
};

/// The workspace behind its head.
__device__ inline TaggedPair* words_of(const FusedLayers& a) {
  return reinterpret_cast<TaggedPair*>(static_cast<LayersHead*>(a.workspace) + 1);
}

/// Element `column` of a sequence's embedded token, and its neighbour.
template <class T>
__device__ inline float2 embedded_pair(const FusedLayers& a, const FusedSequence& sequence, int column) {
  const std::int64_t id = sequence.drawn != nullptr ? *sequence.drawn : sequence.id;
  const T* const token = static_cast<const T*>(a.token) + id * a.token_stride + column;
  const float2 position =
      *reinterpret_cast<const float2*>(a.position + sequence.length * a.position_stride + column);
  return make_float2(to_float(token[0]) + position.x, to_float(token[1]) + position.y);
}

/// Named barriers of a block; 0 is __syncthreads().
enum LayersBarrier : int {
  kRowsHere = 1,
  kSumsHere = 2,  // and the next
  kSumsFree = 4,  // and the next
  kPut = 6,
  kAttendedPut = 7
};

template <int kCount>
__device__ inline void named_sync(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kCount) : "memory");
}
/// Arrives and does not wait.
template <int kCount>
__device__ inline void named_arrive(int barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(kCount) : "memory");
}
constexpr int kSumThreads = kRunThreads + kWarp;

/// Where run r of a tile leaves row `row` of its eight columns.
template <int kRows>
__device__ inline float* sums_of(float* sums, int tile, int run, int row) {
  return sums + ((tile * kRuns + run) * kRows + row) * kTileColumns;
}

/// A block's tiles of the head: neighbours.
struct HeadTiles {
  int first, count;
  __device__ explicit HeadTiles(int vocab) {
    const int all = (vocab + kTileColumns - 1) / kTileColumns, blocks = static_cast<int>(gridDim.x),
              block = static_cast<int>(blockIdx.x);
    first = static_cast<int>(static_cast<std::int64_t>(all) * block / blocks);
    count = static_cast<int>(static_cast<std::int64_t>(all) * (block + 1) / blocks) - first;
  }
  __device__ int groups() const { return (count + kMostFusedTiles - 1) / kMostFusedTiles; }
};

}  // namespace inkling::cuda
