// The warps that attend. Longer than a header: a unit from its first load to the fold, read as one.
#pragma once

#include "attention/cuda/decode_tile.cuh"
#include "engine/cuda/cluster.cuh"
#include "engine/cuda/wgmma.cuh"
#include "model/cuda/layers_plan.cuh"

namespace inkling::cuda {

/// A warp that attends for its cluster's head: in each layer to its units, a chunk of 64 keys of a sequence
/// each, which are the same ones in every layer; then the first warps of a block fold the block's columns, a
/// warp a sequence. Query, key and value of the new token and what is left of the chunks go through the
/// shared memory of the cluster's blocks.
template <class T, int kRows>
class LayerAttention {
 public:
  using Tile = DecodeTile<T, kFusedDim>;
  using Exchange = HeadExchange<T, kRows>;

  __device__ LayerAttention(const FusedLayers& a, const BlockPlan& plan, unsigned char* memory,
                            Exchange& exchange, std::uint32_t time)
      : a_(a),
        words_(words_of(a) + plan.product[kProj].from),
        exchange_(exchange),
        time_(time),
        lane_(threadIdx.x % kWarp),
        warp_((threadIdx.x - kRunThreads - kWarp) / kWarp),
        head_(blockIdx.x / kHeadBlocks),
        rank_(blockIdx.x % kHeadBlocks),
        proj_(plan.tiles[kProj].count > 0),
        k_(reinterpret_cast<T*>(memory + plan.chunks) + warp_ * Tile::kChunk),
        v_(k_ + kDecodeChunk * Tile::kStride),
        value_to_(cluster_address(&exchange.value[0][0][2 * (lane_ % 4)], lane_ / 4)),
        stat_to_(cluster_address(&exchange.stat[0][0], lane_ / 4)),
        chunks_here_(cluster_address(&exchange.chunks_here, lane_ / 4)) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) old_[row] = a.sequence[row].length;
  }

  __device__ void run() {
    if (head_ >= kHeads) return;
    const bool arms = warp_ == 0;
    Unit unit{0, first_unit() - kSlotsOfHead, 0};
    advance(unit);
    load(unit);
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
      const std::uint32_t tag = time_ + static_cast<std::uint32_t>(layer) + 1;
      if (arms && lane_ == 0) {
        barrier_expect(&exchange_.made_here, Exchange::kMadeBytes);
        barrier_expect(&exchange_.chunks_here, chunks_of_all() * Exchange::kChunkBytes);
      }
      const bool attends = unit.layer == layer;
      if (arms || attends) barrier_wait(&exchange_.made_here, layer & 1);
      while (unit.layer == layer) {
        attend(unit);
        advance(unit);
        if (unit.layer == layer) load(unit);
      }
      if (warp_ < kRows) fold(warp_, layer, tag);
      if (warp_ == kRows - 1 && proj_) named_arrive<kSumThreads>(kAttendedPut);
      if (attends) load(unit);
    }
  }

 private:
  static constexpr int kSlotsOfHead = kAttentionWarps * kHeadBlocks;
  static_assert(kRows <= kAttentionWarps);

  /// Units of a layer are counted by chunk first, so that those beyond the end of sequences come last.
  struct Unit {
    int layer, number, chunk;
    __device__ int row() const { return number % kRows; }
  };
  __device__ int first_unit() const {
    return warp_ * kHeadBlocks + rank_;
  }
  /// Tokens of a sequence before this one.
  __device__ int old_of(int row) const {
    return kRows > 1 && row == 1 ? old_[kRows - 1] : old_[0];
  }
  __device__ int chunks_of(int row) const {
    return old_of(row) / kDecodeChunk + 1;
  }
  __device__ int chunks_of_all() const {
    int all = 0;
#pragma unroll
    for (int row = 0; row < kRows; ++row) all += chunks_of(row);
    return all;
  }
  /// To this warp's next unit that has keys, in this layer or a later one.
  __device__ void advance(Unit& unit) const {
    while (unit.layer < a_.layers) {
      for (unit.number += kSlotsOfHead; unit.number < a_.chunks * kRows; unit.number += kSlotsOfHead) {
        unit.chunk = unit.number / kRows;
        if (unit.chunk < chunks_of(unit.row())) return;
      }
      ++unit.layer;
      unit.number = first_unit() - kSlotsOfHead;
    }
  }
  /// A unit's keys in their page, a chunk.
  __device__ T* keys_of(const Unit& unit) const {
    static_assert(kDecodeChunk == 64);
    return reinterpret_cast<T*>(a_.sequence[unit.row()].page[unit.chunk] + unit.layer * a_.layer_bytes +
                                head_ * a_.head_bytes);
  }
  __device__ T* values_of(const Unit& unit) const {
    return keys_of(unit) + a_.k_bytes / sizeof(T);
  }
  /// Asks for what the cache has of a unit's keys and values; zeros behind them.
  __device__ void load(const Unit& unit) const {
    if (unit.layer == a_.layers) return;
    const int rows = old_of(unit.row()) - unit.chunk * kDecodeChunk;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      copy_keys<T, kFusedDim, false>(i == 0 ? k_ : v_, i == 0 ? keys_of(unit) : values_of(unit), kFusedDim,
                                     rows, kFusedDim, true);
      copy_commit();
    }
  }

  __device__ void attend(const Unit& unit) const {
    const int row = unit.row(), old = old_of(row), keys = old + 1 - unit.chunk * kDecodeChunk;
    const bool fresh = keys <= kDecodeChunk;  // the chunk of the new token
    const std::uint32_t key = made(row, 1), value = made(row, 2);
    if (fresh) {
      copy_wait<0>();
      __syncwarp();
      pair_at(row_of(k_, old)) = key;
      pair_at(row_of(v_, old)) = value;
    }
    ChunkRow result;
    read_row(result, exchange_.made[row][0], keys);
    // To each block the columns that it folds.
    const int at = row * kMostFusedChunks + unit.chunk;
    put_cluster(value_to_ + at * kTileColumns * static_cast<int>(sizeof(float)), chunks_here_,
                make_float2(picked(result.x), picked(result.y)));
    if (lane_ % 4 == 0) {
      put_cluster(stat_to_ + at * static_cast<int>(sizeof(float2)), chunks_here_,
                  make_float2(result.top, result.sum));
    }
    // Nobody in this step reads the new token from its page: that can wait.
    if (fresh) {
      const int within = old % kDecodeChunk * kFusedDim;
      pair_at(keys_of(unit) + within) = key;
      pair_at(values_of(unit) + within) = value;
    }
    __syncwarp();
  }
  /// This lane's two columns of the new token's query, key or value.
  __device__ std::uint32_t made(int row, int part) const {
    return *reinterpret_cast<const std::uint32_t*>(&exchange_.made[row][part][2 * lane_]);
  }
  /// This lane's two columns of a row of D.
  __device__ std::uint32_t& pair_at(T* row) const {
    return *reinterpret_cast<std::uint32_t*>(row + 2 * lane_);
  }
  __device__ static T* row_of(T* tile, int key) {
    return tile + key % kDecodeChunk * Tile::kStride;
  }

  /// What read_chunk() leaves of one row (decode_chunk.cuh), by the same arithmetic without the other
  /// fifteen: all eight rows of the matrix instructions that count are the query, and all lanes have the
  /// result.
  struct ChunkRow {
    float x[kFusedDim / 8], y[kFusedDim / 8];  // columns 8·n + 2·(lane % 4) and the next
    float top, sum;
  };
  /// values[lane / 4], by selections: an index would put them into memory.
  __device__ float picked(const float (&values)[kHeadBlocks]) const {
    static_assert(kHeadBlocks == 8);
    const bool odd = (lane_ & 4) != 0, second = (lane_ & 8) != 0, high = (lane_ & 16) != 0;
    const auto of_four = [&](float a, float b, float c, float d) {
      const float low = odd ? b : a, up = odd ? d : c;
      return second ? up : low;
    };
    const float first = of_four(values[0], values[1], values[2], values[3]);
    const float last = of_four(values[4], values[5], values[6], values[7]);
    return high ? last : first;
  }
  __device__ void read_row(ChunkRow& result, const T* q, int keys) const {
    constexpr int kStride = Tile::kStride;
    const int t = lane_ % 4;
    typename Mma<T>::A query[kFusedDim / 16];
#pragma unroll
    for (int i = 0; i < kFusedDim / 16; ++i) {
      const auto* const pairs = reinterpret_cast<const std::uint32_t*>(q + 16 * i);
      query[i] = {{pairs[t], 0, pairs[t + 4], 0}};
    }
    float s[kDecodeChunk / 8][4] = {};
    copy_wait<1>();  // K is here
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kFusedDim / 16; ++i) {
#pragma unroll
      for (int n = 0; n < kDecodeChunk / 8; n += 2) {
        typename Mma<T>::B b[2];
        Mma<T>::load_b_rows(b, k_, kStride, n * 8, i * 16);
        Mma<T>::multiply(s[n], query[i], b[0]);
        Mma<T>::multiply(s[n + 1], query[i], b[1]);
      }
    }
    const float scale = a_.scale * kLog2E;
    const bool whole = keys >= kDecodeChunk;
    float top = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kDecodeChunk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        s[n][e] *= scale;
        s[n][e] = whole || 8 * n + 2 * t + e < keys ? s[n][e] : -INFINITY;
        top = fmaxf(top, s[n][e]);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float reference = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int n = 0; n < kDecodeChunk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) s[n][e] = exp2_approx(s[n][e] - reference);
      sum += s[n][0] + s[n][1];
    }
    copy_wait<0>();  // V, too
    __syncwarp();
    float c[kFusedDim / 8][4] = {};
#pragma unroll
    for (int j = 0; j < kDecodeChunk / 8; j += 2) {
      const typename Mma<T>::A weights{
          {pack2<T>(s[j][0], s[j][1]), 0, pack2<T>(s[j + 1][0], s[j + 1][1]), 0}};
#pragma unroll
      for (int n = 0; n < kFusedDim / 8; n += 2) {
        typename Mma<T>::B b[2];
        Mma<T>::load_b_columns(b, v_, kStride, j * 8, n * 8);
        Mma<T>::multiply(c[n], weights, b[0]);
        Mma<T>::multiply(c[n + 1], weights, b[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kFusedDim / 8; ++n) result.x[n] = c[n][0], result.y[n] = c[n][1];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    result.top = top;
    result.sum = sum;
  }

  /// The largest of the lanes' values: integers in the place of floats.
  static __device__ float warp_max(float x) {
    const auto turned = [](int bits) { return bits < 0 ? bits ^ 0x7fffffff : bits; };
    return __int_as_float(turned(__reduce_max_sync(0xffffffffu, turned(__float_as_int(x)))));
  }

  /// The block's eight columns of a row from its chunks, in the order of fold_chunks(): lanes 0 … 7 have the
  /// even chunks, 8 … 15 the odd ones.
  __device__ void fold(int row, int layer, std::uint32_t tag) const {
    const int chunks = chunks_of(row), column = lane_ % kTileColumns, odd = lane_ / kTileColumns % 2;
    barrier_wait(&exchange_.chunks_here, layer & 1);
    const float2 stat = lane_ < chunks ? exchange_.stat[row][lane_] : make_float2(-INFINITY, 0.0f);
    const float top = warp_max(stat.x);
    const float weight = exp2_approx(stat.x - (top == -INFINITY ? 0.0f : top));
    float sum = fmaf(stat.y, weight, 0.0f), value = 0.0f;
#pragma unroll 4
    for (int i = 0; i < chunks; i += 2) {
      const int chunk = i + odd;
      const float w = __shfl_sync(0xffffffffu, weight, chunk % kWarp);
      const float x = exchange_.value[row][min(chunk, chunks - 1)][column];
      value = fmaf(chunk < chunks ? w : 0.0f, x, value);
    }
    // The lanes of the columns need it; zeros come from those behind the chunks.
#pragma unroll
    for (int d = 1; d < 2 * kTileColumns; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (chunks > 2 * kTileColumns) sum += __shfl_xor_sync(0xffffffffu, sum, 2 * kTileColumns);
    value += __shfl_xor_sync(0xffffffffu, value, kTileColumns);
    value *= sum == 0.0f ? 0.0f : 1.0f / sum;
    const float next = __shfl_down_sync(0xffffffffu, value, 1);
    if (lane_ < kTileColumns && lane_ % 2 == 0) {
      const int at = row * kFusedWidth + head_ * kFusedDim + rank_ * kTileColumns + column;
      put_tagged(reinterpret_cast<uint2*>(words_) + at / 2, pack2<T>(value, next), tag);
    }
    __syncwarp();
  }

  const FusedLayers& a_;
  TaggedPair* const words_;  // of the attended rows
  Exchange& exchange_;
  const std::uint32_t time_;
  const int lane_, warp_, head_, rank_;
  const bool proj_;  // whether the block brings attended rows
  int old_[kRows];
  T *const k_, *const v_;
  // In the block of the cluster that folds what this lane leaves, the (lane / 4)-th: columns, maximum and sum
  // of the first row's first chunk, and what counts them.
  const std::uint32_t value_to_, stat_to_, chunks_here_;
};

}  // namespace inkling::cuda
