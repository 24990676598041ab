// The warps that multiply, and the one that asks for their weights. Longer than a header: both keep to one
// order of regions.
#pragma once

#include "engine/cuda/norm.cuh"
#include "engine/cuda/wgmma.cuh"
#include "model/cuda/layers_plan.cuh"

namespace inkling::cuda {

__device__ inline void product_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kProductThreads) : "memory");
}

/// The warps that multiply.
template <class T>
class LayerProducts {
 public:
  using Tile = FewTile<T, kTileColumns>;

  __device__ LayerProducts(const FusedLayers& a, const LayersPlan& plan, unsigned char* memory,
                           std::uint64_t* full, std::uint64_t* empty, const std::uint32_t& time)
      : a_(a),
        plan_(plan),
        memory_(memory),
        full_(full),
        empty_(empty),
        words_(words_of(a)),
        time_(time),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp) {}

  __device__ void run() const {
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
#pragma unroll 1
      for (int product = 0; product < kProducts; ++product) multiply(layer, product);
    }
  }
  /// The warp that asks for weights.
  __device__ void ask_all() const {
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
#pragma unroll 1
      for (int product = 0; product < kProducts; ++product) ask(layer, product);
    }
  }

 private:
  /// This block's tiles of a product: first, first + blocks, …
  struct Tiles {
    int first, count;
    __device__ int column(int tile) const {
      return (first + tile * static_cast<int>(gridDim.x)) * kTileColumns;
    }
  };
  __device__ Tiles tiles_of(const ProductShape& shape) const {
    const int blocks = static_cast<int>(gridDim.x), all = shape.n / kTileColumns;
    int first = static_cast<int>(blockIdx.x) - shape.first;
    first += first < 0 ? blocks : 0;
    return {first, (first < all) + (first + blocks < all) + (first + 2 * blocks < all)};
  }

  /// One warp: asks for the weights of this block's tiles, their bias and the norm before them, once what was
  /// there has been read.
  __device__ void ask(int layer, int product) const {
    const ProductShape& shape = plan_.product[product];
    const FusedLayer& from = a_.layer[layer];
    const Tiles tiles = tiles_of(shape);
    if (tiles.count == 0) return;
    if (layer > 0) barrier_wait(empty_ + product, (layer + 1) & 1);
    const float* const bias = from.bias[product];
    const float* const gain = reads_stream(product) ? from.gain[product / 2] : nullptr;
    const float* const shift = reads_stream(product) ? from.shift[product / 2] : nullptr;
    const int row = shape.k * static_cast<int>(sizeof(T)), rows = tiles.count * kTileColumns;
    const int norm = kFusedWidth * static_cast<int>(sizeof(float));
    constexpr int kBias = kTileColumns * static_cast<int>(sizeof(float));
    std::uint64_t* const full = full_ + product;
    if (lane_ == 0) {
      barrier_expect(full, rows * row + (bias != nullptr ? tiles.count * kBias : 0) +
                               (gain != nullptr ? norm : 0) + (shift != nullptr ? norm : 0));
    }
    __syncwarp();
    constexpr int kRows = kMostFusedTiles * kTileColumns;  // lanes; those behind them bring the rest
    if (lane_ < rows) {
      const std::int64_t column = tiles.column(lane_ / kTileColumns) + lane_ % kTileColumns;
      copy_bulk(memory_ + shape.weights + lane_ * Tile::stride(shape.k) * static_cast<int>(sizeof(T)),
                static_cast<const T*>(from.weight[product]) + column * shape.k, row, full);
    } else if (const int tile = lane_ - kRows; tile >= 0 && tile < tiles.count && bias != nullptr) {
      copy_bulk(memory_ + shape.bias + tile * kBias, bias + tiles.column(tile), kBias, full);
    } else if (lane_ == kRows + kMostFusedTiles && gain != nullptr) {
      copy_bulk(memory_ + shape.norm, gain, norm, full);
    } else if (lane_ == kRows + kMostFusedTiles + 1 && shift != nullptr) {
      copy_bulk(memory_ + shape.norm + norm, shift, norm, full);
    }
  }

  /// Rows of the product's input as they are, by all product warps: 8 bytes of a pair of words.
  __device__ void bring(const ProductShape& shape, std::uint32_t tag, unsigned char* rows, int stride) const {
    constexpr int kTogether = 2;
    static_assert(kMostFusedRows == 2);
    const int across = shape.row, all = a_.rows * across;
#pragma unroll 1
    for (int i0 = threadIdx.x; i0 < all; i0 += kTogether * kProductThreads) {
      uint2* to[kTogether];
      const TaggedPair* from[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int at = min(i0 + i * kProductThreads, all - 1), row = at >= across ? 1 : 0;
        to[i] = reinterpret_cast<uint2*>(rows + row * stride) + at - row * across;
        from[i] = words_ + shape.from + at;
      }
      TaggedPair words[kTogether];
      take_tagged(
          words, [&](int i) { return from[i]; }, tag);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) *to[i] = make_uint2(words[i].x, words[i].z);
    }
  }
  /// Rows of the stream through their norm, a warp each.
  __device__ void bring_normed(const ProductShape& shape, int layer, int product, std::uint32_t tag, T* x,
                               int stride) const {
    float* const rows = reinterpret_cast<float*>(memory_ + plan_.stream);
    if (layer == 0 && product == kQkv) {
      for (int i = threadIdx.x; i < a_.rows * kFusedWidth; i += kProductThreads) {
        rows[i] = a_.x[i / kFusedWidth * a_.x_stride + i % kFusedWidth];
      }
    } else {
      bring(shape, product == kQkv ? tag - 1 : tag, memory_ + plan_.stream, kFusedWidth * sizeof(float));
    }
    product_sync();
    if (warp_ >= a_.rows) return;
    const auto* const gain = reinterpret_cast<const float*>(memory_ + shape.norm);
    RowNorm<float, kHeld, true> norm({gain, gain + kFusedWidth, a_.epsilon}, kFusedWidth);
    T* const to = x + warp_ * stride;
    norm(rows + warp_ * kFusedWidth, kFusedWidth,
         [&](int c, const float(&v)[4]) { store4(to + c, v, 4, true); });
  }

  __device__ void multiply(int layer, int product) const {
    const ProductShape& shape = plan_.product[product];
    const Tiles tiles = tiles_of(shape);
    if (tiles.count == 0) return;
    const std::uint32_t tag = time_ + static_cast<std::uint32_t>(layer) + 1;
    const int stride = Tile::stride(shape.k);
    T* const x = reinterpret_cast<T*>(memory_ + plan_.x);
    const bool multiplies = warp_ < tiles.count * kRuns;
    const RunProduct<Tile, true> run(
        x, a_.rows - 1,
        reinterpret_cast<const T*>(memory_ + shape.weights) + warp_ / kRuns * kTileColumns * stride, stride,
        run_of(warp_ % kRuns, Tile::steps(shape.k)));
    float* const sums = reinterpret_cast<float*>(memory_ + plan_.sums);

    // Half a warp finishes a row, a lane two of its columns. What is added last is asked for now.
    const int row = threadIdx.x / 16, pair = threadIdx.x % 16, tile = pair / kTilePairs;
    const bool mine = row < a_.rows && tile < tiles.count;
    const int column = tiles.column(tile) + pair % kTilePairs * 2;
    const float* const parts = sums + tile * kRuns * 64 + row * kTileColumns + pair % kTilePairs * 2;
    float2 residual = make_float2(0.0f, 0.0f);
    if (mine && !reads_stream(product)) residual = stream(shape, layer, product, row, column, tag);

    barrier_wait(full_ + product, layer & 1);
    const float2 bias =
        reinterpret_cast<const float2*>(memory_ + shape.bias)[pair % (kMostFusedTiles * kTilePairs)];
    if (reads_stream(product)) {
      bring_normed(shape, layer, product, tag, x, stride);
    } else {
      bring(shape, tag, reinterpret_cast<unsigned char*>(x), stride * static_cast<int>(sizeof(T)));
    }
    product_sync();
    if (multiplies) {
      float sum[1][1][4] = {};
      run.add_to(sum);
      *reinterpret_cast<float2*>(sums + warp_ * 64 + lane_ * 2) = make_float2(sum[0][0][0], sum[0][0][1]);
    }
    product_sync();
    if (threadIdx.x == kProductThreads - 1) barrier_arrive(empty_ + product);
    if (mine) {
      float v[2] = {};
#pragma unroll
      for (int i = 0; i < kRuns; ++i) {
        const float2 part = *reinterpret_cast<const float2*>(parts + i * 64);
        v[0] += part.x, v[1] += part.y;
      }
      v[0] += bias.x, v[1] += bias.y;
      if (product == kFc) {
        with_activation(a_.activation, [&](auto activation) {
          v[0] = activated(decltype(activation)::value, v[0]),
          v[1] = activated(decltype(activation)::value, v[1]);
        });
      }
      v[0] += residual.x, v[1] += residual.y;
      put(shape, layer, product, row, column, v, tag);
    }
  }

  /// Two columns of the residual stream, to which a product is added.
  __device__ float2 stream(const ProductShape& shape, int layer, int product, int row, int column,
                           std::uint32_t tag) const {
    const bool first = product == kProj;  // its stream is of the layer before
    if (first && layer == 0) return *reinterpret_cast<const float2*>(a_.x + row * a_.x_stride + column);
    TaggedPair pair[1];
    const TaggedPair* const at = words_ + shape.residual + (row * kFusedWidth + column) / 2;
    take_tagged(
        pair, [&](int) { return at; }, first ? tag - 1 : tag);
    return make_float2(__uint_as_float(pair[0].x), __uint_as_float(pair[0].z));
  }

  __device__ void put(const ProductShape& shape, int layer, int product, int row, int column,
                      const float (&v)[2], std::uint32_t tag) const {
    if (reads_stream(product)) {
      uint2* const to = reinterpret_cast<uint2*>(words_ + shape.to) + (row * shape.n + column) / 2;
      put_tagged(to, pack2<T>(v[0], v[1]), tag);
    } else if (product == kFcProj && layer + 1 == a_.layers) {
      *reinterpret_cast<float2*>(a_.out + row * a_.out_stride + column) = make_float2(v[0], v[1]);
    } else {
      TaggedPair* const to = words_ + shape.to + (row * kFusedWidth + column) / 2;
      put_tagged(to, __float_as_uint(v[0]), __float_as_uint(v[1]), tag);
    }
  }

  const FusedLayers& a_;
  const LayersPlan& plan_;
  unsigned char* const memory_;
  std::uint64_t *const full_, *const empty_;  // of each product
  TaggedPair* const words_;                   // the workspace
  const std::uint32_t& time_;                 // in shared memory
  const int warp_, lane_;
};

}  // namespace inkling::cuda
