// The warps that multiply, one for each run of k. Longer than a header: the two kinds of products and the
// head share fragments, norm and the order of their barriers.
#pragma once

#include "engine/cuda/norm.cuh"
#include "model/cuda/layers_fragments.cuh"
#include "model/cuda/layers_weights.cuh"

namespace inkling::cuda {

/// A warp that multiplies run `warp` of k: of the products that read the stream it norms its own columns of
/// every row, though the sums of the norm are each warp's.
template <class T, int kRows>
class LayerRuns {
 public:
  using Tile = FewTile<T, kTileColumns>;
  using Step = StepFragment<T>;

  __device__ LayerRuns(const FusedLayers& a, const BlockPlan& plan, unsigned char* memory,
                       WeightBarriers& barriers, std::uint32_t time)
      : a_(a),
        plan_(plan),
        memory_(memory),
        barriers_(barriers),
        words_(words_of(a)),
        time_(time),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp),
        stream_(reinterpret_cast<float*>(memory + plan.stream)),
        sums_(reinterpret_cast<float*>(memory + plan.sums)),
        x_(reinterpret_cast<T*>(memory + plan.x) + warp_ * kRows * plan.run) {}

  __device__ void run() const {
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
      const std::uint32_t tag = time_ + static_cast<std::uint32_t>(layer) + 1;
#pragma unroll 1
      for (int pass = 0; pass < 2; ++pass) {
        normed(layer, pass == 0 ? kQkv : kFc, tag);
        plain(layer, pass == 0 ? kProj : kFcProj, tag);
      }
    }
    head(time_ + static_cast<std::uint32_t>(a_.layers));
  }

 private:
  static constexpr int kStep = Tile::kDepth, kNormedSteps = kFusedWidth / kStep / kRuns;  // of a run
  static constexpr int kRun = kFusedWidth / kRuns, kNormedStride = kRun + Tile::kPer;

  /// A run of 768: all of the tiles' weights, and then the products. One code for three tiles and four: with
  /// two the instruction cache costs more than a tile for nothing.
  using Weights = Step[kNormedSteps][kMostFusedTiles];
  __device__ void read_all(Weights& right, const unsigned char* weights) const {
    constexpr int kStride = Tile::stride(kFusedWidth);
    const T* const w = reinterpret_cast<const T*>(weights) + warp_ * kRun;
#pragma unroll
    for (int s = 0; s < kNormedSteps; ++s) {
#pragma unroll
      for (int tile = 0; tile < kMostFusedTiles; ++tile)
        right[s][tile].read(w + tile * kTileColumns * kStride, kTileColumns - 1, kStride, s * kStep);
    }
  }
  __device__ void read_all(Step (&left)[kNormedSteps]) const {
#pragma unroll
    for (int s = 0; s < kNormedSteps; ++s) left[s].read(x_, kRows - 1, kNormedStride, s * kStep);
  }
  __device__ void multiply_all(float* sums, const Step (&left)[kNormedSteps], const Weights& right) const {
    float c[kMostFusedTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kNormedSteps * kStep / 16; ++i) {
#pragma unroll
      for (int tile = 0; tile < kMostFusedTiles; ++tile) {
        multiply(c[tile], left[i / (kStep / 16)], right[i / (kStep / 16)][tile], i % (kStep / 16));
      }
    }
#pragma unroll
    for (int tile = 0; tile < kMostFusedTiles; ++tile) leave(sums, tile, c[tile]);
  }
  __device__ void leave(float* sums, int tile, const float (&c)[4]) const {
    if (lane_ / 4 < kRows) {
      *reinterpret_cast<float2*>(sums_of<kRows>(sums, tile, warp_, lane_ / 4) + lane_ % 4 * 2) =
          make_float2(c[0], c[1]);
    }
  }

  /// Waits until what this block makes of a product's input is out, and about to be seen by others: a
  /// question before that finds nothing, and the next one is asked only when it has come back.
  __device__ void after_own(int product) const {
    const int before = (product + kProducts - 1) % kProducts;
    if (plan_.tiles[before].count == 0) return;
    named_sync<kSumThreads>(product == kProj ? kAttendedPut : kPut);
    const auto from = static_cast<unsigned>(clock());
    while (static_cast<unsigned>(clock()) - from < kUnderWay) {
    }
  }
  /// The stream's rows into shared memory, by all of these warps.
  __device__ void bring_stream(int from, std::uint32_t tag) const {
    constexpr int kPairs = kRows * kFusedWidth / 2 / kRunThreads;
    TaggedPair words[kPairs];
    const TaggedPair* const at = words_ + from + threadIdx.x;
    take_tagged(
        words, [&](int i) { return at + i * kRunThreads; }, tag);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      reinterpret_cast<uint2*>(stream_)[threadIdx.x + i * kRunThreads] = make_uint2(words[i].x, words[i].z);
    }
  }
  __device__ void embed() const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int i = 0; i < kFusedWidth / 2 / kRunThreads; ++i) {
        const int pair = threadIdx.x + i * kRunThreads;
        reinterpret_cast<float2*>(stream_ + row * kFusedWidth)[pair] =
            embedded_pair<T>(a_, a_.sequence[row], 2 * pair);
      }
    }
  }

  /// Gain and shift of this lane's pairs of columns, and where those are.
  struct Affine {
    static constexpr int kPairs = kRun / 2 / kWarp;
    float2 gain[kPairs], shift[kPairs];
  };
  __device__ int pair_column(int i) const {
    return warp_ * kRun + 2 * (lane_ + i * kWarp);
  }
  __device__ void read(Affine& affine, const float* gain, const float* shift) const {
#pragma unroll
    for (int i = 0; i < Affine::kPairs; ++i) {
      affine.gain[i] = *reinterpret_cast<const float2*>(gain + pair_column(i));
      affine.shift[i] = shift == nullptr ? make_float2(0.0f, 0.0f)
                                         : *reinterpret_cast<const float2*>(shift + pair_column(i));
    }
  }
  /// This warp's columns of the rows of the stream through a norm.
  __device__ void norm(const Affine& affine) const {
    float2 mine[kRows][Affine::kPairs];
    RowMoments moments[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float* const from = stream_ + row * kFusedWidth;
#pragma unroll
      for (int i = 0; i < Affine::kPairs; ++i)
        mine[row][i] = *reinterpret_cast<const float2*>(from + pair_column(i));
      constexpr int kHeld = kFusedWidth / (4 * kWarp);
      float held[kHeld][4];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) read_four(held[i], from, norm_column(i), kFusedWidth);
      const auto each = [&](const auto& body) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) body(norm_column(i), held[i]);
      };
      moments[row] = row_moments(each, kFusedWidth, a_.epsilon);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int i = 0; i < Affine::kPairs; ++i) {
        const float2 v = mine[row][i], gain = affine.gain[i], shift = affine.shift[i];
        const float mean = moments[row].mean, scale = moments[row].scale;
        reinterpret_cast<std::uint32_t*>(x_ + row * kNormedStride)[lane_ + i * kWarp] = pack2<T>(
            fmaf((v.x - mean) * scale, gain.x, shift.x), fmaf((v.y - mean) * scale, gain.y, shift.y));
      }
    }
    __syncwarp();
  }

  __device__ void normed(int layer, int product, std::uint32_t tag) const {
    const ProductShape& shape = plan_.product[product];
    if (plan_.tiles[product].count == 0) return;
    barrier_wait(barriers_.full + product, layer & 1);
    Affine affine;
    const float* const gain = reinterpret_cast<const float*>(memory_ + shape.norm);
    read(affine, gain, gain + kFusedWidth);
    Weights right;
    read_all(right, memory_ + shape.weights);
    if (layer == 0 && product == kQkv) {
      embed();
    } else {
      after_own(product);
      bring_stream(shape.from, product == kQkv ? tag - 1 : tag);
    }
    named_sync<kRunThreads>(kRowsHere);
    norm(affine);
    Step left[kNormedSteps];
    read_all(left);
    multiply_all(sums_, left, right);
    close(product);
  }
  __device__ void close(int product) const {
    named_arrive<kSumThreads>(kSumsHere);
    if (lane_ == 0) barrier_arrive(barriers_.empty + product);
  }

  /// This run's columns of rows of 16 bits as they are, a pair of words for four.
  template <int kTogether>
  __device__ void bring_run(const ProductShape& shape, int begin, int length, int stride,
                            std::uint32_t tag) const {
    const int across = length / 4, all = kRows * across;
    const TaggedPair* const from = words_ + shape.from + begin / 4;
#pragma unroll 1
    for (int first = lane_; first < all; first += kTogether * kWarp) {
      const auto at = [&](int i) { return min(first + i * kWarp, all - 1); };
      const auto row = [&](int i) { return kRows > 1 && at(i) >= across ? 1 : 0; };
      TaggedPair words[kTogether];
      take_tagged(
          words, [&](int i) { return from + at(i) + row(i) * (shape.k / 4 - across); }, tag);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        reinterpret_cast<uint2*>(x_ + row(i) * stride)[at(i) - row(i) * across] =
            make_uint2(words[i].x, words[i].z);
      }
    }
    __syncwarp();
  }

  __device__ void plain(int layer, int product, std::uint32_t tag) const {
    const ProductShape& shape = plan_.product[product];
    if (plan_.tiles[product].count == 0) return;
    const Run run = run_of(warp_, Tile::steps(shape.k));
    const int steps = run.end - run.begin, begin = run.begin * kStep, stride = steps * kStep + Tile::kPer;
    const T* const w = reinterpret_cast<const T*>(memory_ + shape.weights) + begin;
    // A step's fragments are read while the step before it is multiplied.
    Step left[2], right[2];
    const int w_stride = Tile::stride(shape.k);
    barrier_wait(barriers_.full + product, layer & 1);
    right[0].read(w, kTileColumns - 1, w_stride, 0);
    after_own(product);
    float c[4] = {};
    if (steps == 0) {
      // No warp goes on to the next product before the last one is whole.
      TaggedPair word[1];
      take_tagged(
          word, [&](int) { return words_ + shape.from; }, tag);
    } else {
      steps* kStep <= kRun ? bring_run<2 * kRows>(shape, begin, steps * kStep, stride, tag)
                           : bring_run<6 * kRows>(shape, begin, steps * kStep, stride, tag);
      left[0].read(x_, kRows - 1, stride, 0);
#pragma unroll 1
      for (int step = 0; step < steps; step += 2) {
        const int next = min(step + 1, steps - 1) * kStep, then = min(step + 2, steps - 1) * kStep;
        right[1].read(w, kTileColumns - 1, w_stride, next), left[1].read(x_, kRows - 1, stride, next);
#pragma unroll
        for (int i = 0; i < kStep / 16; ++i) multiply(c, left[0], right[0], i);
        if (step + 1 == steps) break;
        right[0].read(w, kTileColumns - 1, w_stride, then), left[0].read(x_, kRows - 1, stride, then);
#pragma unroll
        for (int i = 0; i < kStep / 16; ++i) multiply(c, left[1], right[1], i);
      }
    }
    leave(sums_, 0, c);
    close(product);
  }

  /// The last norm, and the groups of the head's tiles.
  __device__ void head(std::uint32_t tag) const {
    Affine affine;
    read(affine, a_.norm.gain, a_.norm.shift);
    after_own(kQkv);
    bring_stream(plan_.product[kQkv].from, tag);
    named_sync<kRunThreads>(kRowsHere);
    norm(affine);
    Step left[kNormedSteps];
    read_all(left);
    const int groups = HeadTiles(a_.vocab).groups();
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
      const int slot = group % kSlots, turn = group / kSlots, half = group % 2;
      barrier_wait(barriers_.head_full + slot, turn & 1);
      Weights right;
      read_all(right, memory_ + slot_offset<T>(slot));
      __syncwarp();
      if (lane_ == 0) barrier_arrive(barriers_.head_empty + slot);
      if (group >= 2) named_sync<kSumThreads>(kSumsFree + half);
      multiply_all(sums_ + half * kSums, left, right);
      named_arrive<kSumThreads>(kSumsHere + half);
    }
  }

  const FusedLayers& a_;
  const BlockPlan& plan_;
  unsigned char* const memory_;
  WeightBarriers& barriers_;
  TaggedPair* const words_;  // the workspace
  const std::uint32_t time_;
  const int warp_, lane_;
  float *const stream_, *const sums_;
  T* const x_;  // of this run
};

}  // namespace inkling::cuda
