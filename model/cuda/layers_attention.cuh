// The warps that attend. Longer than a header: a unit from its first load to the fold, read as one.
#pragma once

#include "attention/cuda/decode_chunk.cuh"
#include "model/cuda/layers_plan.cuh"

namespace inkling::cuda {

/// Where a pair of columns of a row of f32 is, of `width` columns: fours of columns are cut into two planes,
/// so that lanes that read fours meet neighbours.
__device__ inline int pair_of(int column, int width) {
  return column % 4 / 2 * (width / 4) + column / 4;
}

/// A warp that attends: in each layer to its units, which are the same ones in every layer, and then it
/// folds.
template <class T>
class LayerAttention {
 public:
  using Tile = DecodeTile<T, kFusedDim>;

  __device__ LayerAttention(const FusedLayers& a, const LayersPlan& plan, unsigned char* memory,
                            const std::uint32_t& time)
      : a_(a),
        plan_(plan),
        words_(words_of(a)),
        time_(time),
        lane_(threadIdx.x % kWarp),
        slot_((threadIdx.x - kProductThreads) / kWarp * gridDim.x + blockIdx.x),
        slots_(kAttentionWarps * gridDim.x),
        heads_(a.rows * kHeads),
        k_(reinterpret_cast<T*>(memory + plan.chunks) +
           (threadIdx.x - kProductThreads) / kWarp * (Tile::kBytes / sizeof(T))),
        v_(k_ + kDecodeChunk * Tile::kStride),
        q_(k_ + Tile::kChunk) {}

  __device__ void run() {
    for (int i = lane_; i < Tile::kRows * Tile::kStride; i += kWarp) q_[i] = from_float<T>(0.0f);
    __syncwarp();
    // Folds go to the warps behind those of the last units.
    const int first_fold = (slot_ + slots_ - a_.chunks * heads_ % slots_) % slots_;
    Unit unit{0, slot_ - slots_, 0, 0};
    bool here = false;  // what the cache has of the unit's keys and values
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
      const std::uint32_t tag = time_ + static_cast<std::uint32_t>(layer) + 1;
#pragma unroll 1
      for (;; here = false) {
        if (!here) advance(unit), load(unit);
        here = true;
        if (unit.layer != layer) break;
        attend(unit, tag);
      }
#pragma unroll 1
      for (int i = first_fold; i < heads_; i += slots_) fold(i, tag);
    }
  }

 private:
  /// Units of a layer are counted by chunk first, so that those beyond the end of sequences come last.
  struct Unit {
    int layer, number;
    int chunk, row;  // of queries: sequence · H + head
    __device__ int sequence() const { return row / kHeads; }
    __device__ int head() const { return row % kHeads; }
  };
  /// Tokens of its sequence before this one.
  __device__ int old_of(const Unit& unit) const {
    return a_.length[unit.sequence()];
  }
  __device__ static int chunks_of(int old) {
    return old / kDecodeChunk + 1;
  }
  /// To this warp's next unit that has keys, in this layer or a later one.
  __device__ void advance(Unit& unit) const {
    while (unit.layer < a_.layers) {
      for (unit.number += slots_; unit.number < a_.chunks * heads_; unit.number += slots_) {
        unit.chunk = unit.number / heads_;
        unit.row = unit.number % heads_;
        if (unit.chunk < chunks_of(old_of(unit))) return;
      }
      ++unit.layer;
      unit.number = slot_ - slots_;
    }
  }
  __device__ KeyRows<T> rows_of(const Unit& unit, std::int64_t offset) const {
    return KeyRows<T>(a_.attention, a_.attention.k, offset + unit.layer * a_.layer_bytes, unit.sequence(), 0,
                      unit.head());
  }
  /// Asks for what the cache has of a unit's keys and values; zeros behind them.
  __device__ void load(const Unit& unit) const {
    if (unit.layer == a_.layers) return;
    const int first = unit.chunk * kDecodeChunk, old = old_of(unit);
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
      const KeyRows<T> rows =
          rows_of(unit, i == 0 ? a_.attention.pages.k_offset : a_.attention.pages.v_offset);
      copy_keys<T, kFusedDim, false>(i == 0 ? k_ : v_, rows.at(first), rows.stride, old - first, kFusedDim,
                                     true);
      copy_commit();
    }
  }

  __device__ void attend(const Unit& unit, std::uint32_t tag) const {
    // Lane i has columns 2i and 2i + 1 of query, key and value of the new token.
    const uint2* const made = reinterpret_cast<const uint2*>(words_ + plan_.qkv) +
                              (unit.sequence() * 3 * kFusedWidth + unit.head() * kFusedDim) / 2 + lane_;
    const int old = old_of(unit);
    const bool fresh = unit.chunk == old / kDecodeChunk;  // the chunk of the new token
    if (fresh) {
      copy_wait<0>();
      __syncwarp();
      uint2 words[3];
      take_tagged(
          words, [&](int i) { return made + i * kFusedWidth / 2; }, tag);
      pair_at(q_) = words[0].x;
      pair_at(row_of(k_, old)) = words[1].x;
      pair_at(row_of(v_, old)) = words[2].x;
    } else {
      uint2 word[1];
      take_tagged(
          word, [&](int) { return made; }, tag);
      pair_at(q_) = word[0].x;
    }
    __syncwarp();
    DecodeUnit whole{};
    whole.chunk = unit.chunk;
    whole.keys = old + 1;
    whole.queries = whole.rows = whole.group = 1;
    ChunkRows<kFusedDim> rows;
    read_chunk<T, kFusedDim, false>(rows, a_.attention, whole, q_, k_, v_, [] { copy_commit(); });
    leave(unit, old, rows, tag);
    // Nobody in this step reads the new token from its page: that can wait.
    if (fresh) {
      pair_at(const_cast<T*>(rows_of(unit, a_.attention.pages.k_offset).at(old))) = pair_at(row_of(k_, old));
      pair_at(const_cast<T*>(rows_of(unit, a_.attention.pages.v_offset).at(old))) = pair_at(row_of(v_, old));
    }
    __syncwarp();
  }
  /// This lane's two columns of a row of D.
  __device__ std::uint32_t& pair_at(T* row) const {
    return *reinterpret_cast<std::uint32_t*>(row + 2 * lane_);
  }
  __device__ static T* row_of(T* tile, int key) {
    return tile + key % kDecodeChunk * Tile::kStride;
  }

  /// Lanes 0 … 3 have row 0.
  __device__ void leave(const Unit& unit, int old, const ChunkRows<kFusedDim>& rows,
                        std::uint32_t tag) const {
    if (lane_ >= 4) return;
    if (chunks_of(old) == 1) {
      const float factor = rows.factor(0);
      uint2* const to = reinterpret_cast<uint2*>(words_ + plan_.attended) + unit.row * kFusedDim / 2 + lane_;
#pragma unroll
      for (int n = 0; n < kFusedDim / 8; ++n) {
        put_tagged(to + n * 4, pack2<T>(rows.value[n][0] * factor, rows.value[n][1] * factor), tag);
      }
      return;
    }
    TaggedPair* const to = words_ + plan_.partials + (unit.row * a_.chunks + unit.chunk) * kPartialPairs;
    if (lane_ == 0) put_tagged(to, __float_as_uint(rows.top[0]), __float_as_uint(rows.sum[0]), tag);
    TaggedPair* const values = to + 1 + pair_of(2 * lane_, kFusedDim);
#pragma unroll
    for (int n = 0; n < kFusedDim / 8; ++n) {
      put_tagged(values + 2 * n, __float_as_uint(rows.value[n][0]), __float_as_uint(rows.value[n][1]), tag);
    }
  }

  /// The partial results of a head as fold_chunks() asks for them.
  struct Partials {
    static constexpr int kTogether = 4;
    const TaggedPair* from;
    std::uint32_t tag;
    int at[kTogether];
    TaggedPair asked[kTogether][2];

    __device__ float2 stat(int chunk) const {
      TaggedPair pair[1];
      take_tagged(
          pair, [&](int) { return from + chunk * kPartialPairs; }, tag);
      return make_float2(__uint_as_float(pair[0].x), __uint_as_float(pair[0].z));
    }
    __device__ void ask(int j, int chunk, int d) {
      at[j] = chunk * kPartialPairs + 1 + d / 4;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        asked[j][half] = load_tagged(from + at[j] + half * (kFusedDim / 4));
    }
    __device__ void wait() {
      for (;;) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < 2 * kTogether; ++i) all = all && has_tag(asked[i / 2][i % 2], tag);
        if (all) return;
#pragma unroll
        for (int i = 0; i < 2 * kTogether; ++i) {
          if (!has_tag(asked[i / 2][i % 2], tag)) {
            asked[i / 2][i % 2] = load_tagged(from + at[i / 2] + i % 2 * (kFusedDim / 4));
          }
        }
      }
    }
    __device__ float4 value(int j) const {
      return make_float4(__uint_as_float(asked[j][0].x), __uint_as_float(asked[j][0].z),
                         __uint_as_float(asked[j][1].x), __uint_as_float(asked[j][1].z));
    }
  };
  __device__ void fold(int row, std::uint32_t tag) const {
    const int chunks = chunks_of(a_.length[row / kHeads]);
    if (chunks == 1) return;
    Partials partials;
    partials.from = words_ + plan_.partials + row * a_.chunks * kPartialPairs;
    partials.tag = tag;
    TaggedPair* const to = words_ + plan_.attended + row * kFusedDim / 4;
    fold_chunks<kFusedDim, Partials::kTogether>(chunks, partials, [&](int d, const float(&v)[4]) {
      put_tagged(to + d / 4, pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), tag);
    });
  }

  const FusedLayers& a_;
  const LayersPlan& plan_;
  TaggedPair* const words_;
  const std::uint32_t& time_;  // in shared memory
  const int lane_, slot_, slots_;
  const int heads_;  // of all sequences
  T *const k_, *const v_, *const q_;
};

}  // namespace inkling::cuda
