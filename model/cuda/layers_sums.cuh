// The warp of a block that adds the runs of its products and hands the results on.
#pragma once

#include "engine/cuda/activation.cuh"
#include "engine/cuda/cluster.cuh"
#include "model/cuda/layers_weights.cuh"

namespace inkling::cuda {

/// The warp that adds runs in their order and finishes rows: half of it a row, a lane two of its columns. The
/// stream of the columns that a block adds to stays in its registers.
template <class T, int kRows>
class LayerSums {
 public:
  __device__ LayerSums(const FusedLayers& a, const BlockPlan& plan, unsigned char* memory,
                       WeightBarriers& barriers, HeadExchange<T, kRows>& exchange, std::uint32_t time)
      : a_(a),
        plan_(plan),
        memory_(memory),
        barriers_(barriers),
        exchange_(exchange),
        words_(words_of(a)),
        time_(time),
        lane_(threadIdx.x % kWarp),
        row_(min(lane_ / 16, kRows - 1)),
        tile_(lane_ % 16 / kTilePairs),
        within_(lane_ % kTilePairs * 2),
        sums_(reinterpret_cast<float*>(memory + plan.sums)) {}

  __device__ void run() const {
    float2 stream = embedded();
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
      const std::uint32_t tag = time_ + static_cast<std::uint32_t>(layer) + 1;
#pragma unroll 1
      for (int product = 0; product < kProducts; ++product) add(layer, product, stream, tag);
    }
    head();
  }

 private:
  __device__ bool is_mine(int tiles) const {
    return lane_ / 16 < kRows && tile_ < tiles;
  }

  /// The stream of this lane's columns of the products that add to it, which have a tile a block.
  __device__ float2 embedded() const {
    const Tiles tiles = plan_.tiles[kProj];
    if (!is_mine(tiles.count)) return make_float2(0.0f, 0.0f);
    return embedded_pair<T>(a_, a_.sequence[row_], tiles.column(0) + within_);
  }

  __device__ float2 sum(const float* sums) const {
    const float* const parts = sums_of<kRows>(const_cast<float*>(sums), tile_, 0, row_) + within_;
    float2 part[kRuns], v = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
      part[i] = *reinterpret_cast<const float2*>(parts + i * kRows * kTileColumns);
#pragma unroll
    for (int i = 0; i < kRuns; ++i) v.x += part[i].x, v.y += part[i].y;
    return v;
  }

  __device__ void add(int layer, int product, float2& stream, std::uint32_t tag) const {
    const ProductShape& shape = plan_.product[product];
    const Tiles tiles = plan_.tiles[product];
    if (tiles.count == 0) return;
    barrier_wait(barriers_.full + product, layer & 1);
    const int tile = min(tile_, kMostFusedTiles - 1);
    const float2 bias =
        reinterpret_cast<const float2*>(memory_ + shape.bias)[tile * kTilePairs + within_ / 2];
    // Where the pair goes, of rows of 16 bits and of the stream: known before there is something to put.
    const int column = tiles.column(tile) + within_;
    uint2* const half = reinterpret_cast<uint2*>(words_ + shape.to) + (row_ * shape.n + column) / 2;
    TaggedPair* const whole = words_ + shape.to + (row_ * kFusedWidth + column) / 2;
    named_sync<kSumThreads>(kSumsHere);
    if (is_mine(tiles.count)) {
      float2 v = sum(sums_);
      v.x += bias.x, v.y += bias.y;
      if (product == kQkv) {
        hand_over(pack2<T>(v.x, v.y));
      } else if (product == kFc) {
        with_activation(a_.activation, [&](auto activation) {
          v.x = activated(decltype(activation)::value, v.x);
          v.y = activated(decltype(activation)::value, v.y);
        });
        put_tagged(half, pack2<T>(v.x, v.y), tag);
      } else {
        stream.x = v.x + stream.x, stream.y = v.y + stream.y;
        put_tagged(whole, __float_as_uint(stream.x), __float_as_uint(stream.y), tag);
      }
    }
    __syncwarp();
    // Those who bring what it was put for.
    const bool last = product == kFcProj && layer + 1 == a_.layers;
    if (product != kQkv && (last || plan_.tiles[(product + 1) % kProducts].count > 0)) {
      named_arrive<kSumThreads>(kPut);
    }
    if (lane_ == 0) barrier_arrive(barriers_.empty + product);
  }
  /// Two columns of the query, key or value of the head to all of its blocks.
  __device__ void hand_over(std::uint32_t pair) const {
    const int rank = static_cast<int>(blockIdx.x) % kHeadBlocks;
    const T* const to = &exchange_.made[row_][tile_][rank * kTileColumns + within_];
#pragma unroll
    for (int i = 0; i < kHeadBlocks; ++i)
      put_cluster(cluster_address(to, i), cluster_address(&exchange_.made_here, i), pair);
  }

  __device__ void head() const {
    const HeadTiles tiles(a_.vocab);
    const int groups = tiles.groups();
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
      const int half = group % 2, tile = group * kMostFusedTiles + tile_;
      named_sync<kSumThreads>(kSumsHere + half);
      if (is_mine(kMostFusedTiles)) {
        const float2 v = sum(sums_ + half * kSums);
        const int column = (tiles.first + tile) * kTileColumns + within_;
        float* const to = a_.logits + row_ * a_.logits_stride + column;
        if (tile < tiles.count && column < a_.vocab) to[0] = v.x;
        if (tile < tiles.count && column + 1 < a_.vocab) to[1] = v.y;
      }
      __syncwarp();
      if (group + 2 < groups) named_arrive<kSumThreads>(kSumsFree + half);
    }
  }

  const FusedLayers& a_;
  const BlockPlan& plan_;
  unsigned char* const memory_;
  WeightBarriers& barriers_;
  HeadExchange<T, kRows>& exchange_;
  TaggedPair* const words_;  // the workspace
  const std::uint32_t time_;
  const int lane_, row_, tile_, within_;  // of this lane's columns: row, tile, the first of the tile's eight
  float* const sums_;
};

}  // namespace inkling::cuda
