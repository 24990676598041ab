// The warp that asks for weights: of every product the next layer's as soon as this layer's have been read,
// and then the head's, so that memory streams all the time.
#pragma once

#include "engine/cuda/wgmma.cuh"
#include "model/cuda/layers_plan.cuh"

namespace inkling::cuda {

/// Barriers of the weights: `full` when they are there, `empty` when every reader is done with them.
struct WeightBarriers {
  std::uint64_t full[kProducts], empty[kProducts], head_full[kSlots], head_empty[kSlots];

  static constexpr int kReaders = kRuns + 1;  // of a product: its runs and what closes it
  __device__ void init() {
    for (int i = 0; i < kProducts; ++i) barrier_init(full + i, 1), barrier_init(empty + i, kReaders);
    for (int i = 0; i < kSlots; ++i) barrier_init(head_full + i, 1), barrier_init(head_empty + i, kRuns);
  }
};

template <class T>
class LayerWeights {
 public:
  using Tile = FewTile<T, kTileColumns>;

  __device__ LayerWeights(const FusedLayers& a, const BlockPlan& plan, unsigned char* memory,
                          WeightBarriers& barriers)
      : a_(a), plan_(plan), memory_(memory), barriers_(barriers), lane_(threadIdx.x % kWarp) {}

  __device__ void run() const {
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
#pragma unroll 1
      for (int product = 0; product < kProducts; ++product) ask(layer, product);
    }
    const HeadTiles tiles(a_.vocab);
#pragma unroll 1
    for (int group = 0; group < tiles.groups(); ++group) ask_head(tiles, group);
  }

 private:
  static constexpr int kElement = sizeof(T), kFloat = sizeof(float);

  /// Waits until what `layer` had of the product has been read.
  __device__ void wait_for_readers(int layer, int product) const {
    barrier_wait(barriers_.empty + product, layer & 1);
  }

  /// The weights of this block's tiles, their bias and the norm before them, once what was there has been
  /// read.
  __device__ void ask(int layer, int product) const {
    const ProductShape& shape = plan_.product[product];
    const FusedLayer& from = a_.layer[layer];
    const Tiles tiles = plan_.tiles[product];
    if (tiles.count == 0) return;
    if (layer > 0) wait_for_readers(layer - 1, product);
    const float* const bias = from.bias[product];
    const float* const gain = reads_stream(product) ? from.norm[product / 2].gain : nullptr;
    const float* const shift = reads_stream(product) ? from.norm[product / 2].shift : nullptr;
    const int row = shape.k * kElement, rows = tiles.count * kTileColumns;
    constexpr int kNorm = kFusedWidth * kFloat, kBias = kTileColumns * kFloat;
    std::uint64_t* const full = barriers_.full + product;
    if (lane_ == 0) {
      barrier_expect(full, rows * row + (bias != nullptr ? tiles.count * kBias : 0) +
                               (gain != nullptr ? kNorm : 0) + (shift != nullptr ? kNorm : 0));
    }
    __syncwarp();
    static_assert(kMostFusedTiles * kTileColumns <= kWarp);
    if (lane_ < rows) {
      const std::int64_t column = tiles.column(lane_ / kTileColumns) + lane_ % kTileColumns;
      copy_bulk(memory_ + shape.weights + lane_ * Tile::stride(shape.k) * kElement,
                static_cast<const T*>(from.weight[product]) + column * shape.k, row, full);
    }
    if (lane_ < tiles.count && bias != nullptr) {
      copy_bulk(memory_ + shape.bias + lane_ * kBias, bias + tiles.column(lane_), kBias, full);
    } else if (lane_ == kMostFusedTiles && gain != nullptr) {
      copy_bulk(memory_ + shape.norm, gain, kNorm, full);
    } else if (lane_ == kMostFusedTiles + 1 && shift != nullptr) {
      copy_bulk(memory_ + shape.norm + kNorm, shift, kNorm, full);
    }
  }

  __device__ void ask_head(const HeadTiles& tiles, int group) const {
    const int slot = group % kSlots, turn = group / kSlots;
    if (turn > 0) {
      barrier_wait(barriers_.head_empty + slot, (turn - 1) & 1);
    } else {
      for (int product = 0; product < kProducts; ++product) {
        if ((plan_.covers[slot] >> product & 1) != 0 && plan_.tiles[product].count > 0)
          wait_for_readers(a_.layers - 1, product);
      }
    }
    const int column = (tiles.first + group * kMostFusedTiles) * kTileColumns;
    const int end = min((tiles.first + tiles.count) * kTileColumns, a_.vocab);
    const int rows = min(end - column, kMostFusedTiles * kTileColumns);
    constexpr int kRow = kFusedWidth * kElement;
    std::uint64_t* const full = barriers_.head_full + slot;
    if (lane_ == 0) barrier_expect(full, rows * kRow);
    __syncwarp();
    if (lane_ < rows) {
      copy_bulk(memory_ + slot_offset<T>(slot) + lane_ * Tile::stride(kFusedWidth) * kElement,
                static_cast<const T*>(a_.head) + static_cast<std::int64_t>(column + lane_) * kFusedWidth,
                kRow, full);
    }
  }

  const FusedLayers& a_;
  const BlockPlan& plan_;
  unsigned char* const memory_;
  WeightBarriers& barriers_;
  const int lane_;
};

}  // namespace inkling::cuda
