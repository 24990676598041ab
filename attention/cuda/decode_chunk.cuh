// One chunk of keys for a warp's query rows, and the fold of chunks: the arithmetic of attention in decode
// and its order, which decides its bits. Where partial results lie meanwhile is the callers' affair.
#pragma once

#include "attention/cuda/decode_tile.cuh"

namespace inkling::cuda {

/// Scores to base 2, hidden ones to −inf.
template <bool kGeneral, int kTiles>
__device__ inline void mask_rows(float (&s)[kTiles][4], const ForwardArgs& a, const DecodeUnit& unit) {
  const int key = unit.chunk * kDecodeChunk, column = key + threadIdx.x % 4 * 2;
  const KeyWindow window = key_window(a.mask.kind, a.mask.left, a.mask.right, unit.queries, unit.keys);
  const bool whole = all_visible(window, 0, unit.queries, key, kDecodeChunk, unit.keys);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] *= a.scale * kLog2E;
  }
  if (!kGeneral && whole) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x % kWarp / 4 + 8 * r, query = unit.query(row);
    if constexpr (kGeneral) {
      const ScoreRule rule(a, unit.sequence, unit.head(row), unit.queries, unit.keys);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) s[n][2 * r + e] = rule.apply(s[n][2 * r + e], query, column + n * 8 + e);
      }
    } else {
      const int low = query + window.from - column, high = min(query + window.until, unit.keys) - column;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = n * 8 + e;
          s[n][2 * r + e] = at >= low && at < high ? s[n][2 * r + e] : -INFINITY;
        }
      }
    }
  }
}

/// What rows g and g + 8 of a lane have of a chunk: the maximum and the sum of all its keys, and the lane's
/// columns of the values, like accumulators.
template <int kDim>
struct ChunkRows {
  float value[kDim / 8][4] = {}, top[2], sum[2];

  /// Of a row whose only chunk this is.
  __device__ float factor(int r) const { return sum[r] == 0.0f ? 0.0f : 1.0f / sum[r]; }
};

/// Attends to the chunk whose K, and then V, are the copies before the last one asked for. load_next_keys()
/// is called when the tile of K is free, and commits.
template <class T, int kDim, bool kGeneral, class LoadKeys>
__device__ inline void read_chunk(ChunkRows<kDim>& rows, const ForwardArgs& a, const DecodeUnit& unit,
                                  const T* q, const T* k, const T* v, const LoadKeys& load_next_keys) {
  constexpr int kStride = DecodeTile<T, kDim>::kStride;
  float s[kDecodeChunk / 8][4] = {}, rescale[2];
  SoftmaxRows state;
  copy_wait<1>();  // Q and K are here
  __syncwarp();
  multiply_rows<T, kDim>(s, q, 0, k, kStride);
  __syncwarp();
  load_next_keys();
  mask_rows<kGeneral>(s, a, unit);
  online_softmax(s, state, rescale);
  copy_wait<1>();  // V, too
  __syncwarp();
  multiply_weights<T>(rows.value, s, v, kStride, 0);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    rows.top[r] = state.top[r];
    rows.sum[r] = sum;
  }
}

/// A row from the partial results of its chunks: 32 chunks at a time, a lane for the weight of each. Of the
/// source, stat(i) is maximum and sum of chunk i; ask(j, i, d) asks for columns d … d + 3 of chunk i in place
/// j < kTogether, wait() waits for all that was asked for, and then value(j) has them. write(d, v) takes the
/// result. Returns maximum and sum.
template <int kDim, int kTogether, class Source, class Write>
__device__ inline float2 fold_chunks(int chunks, Source& source, const Write& write) {
  constexpr int kRowLanes = kDim / 4 < kWarp ? kDim / 4 : kWarp, kPieces = kDim / 4 / kRowLanes;
  constexpr int kGroups = kWarp / kRowLanes;
  const int lane = threadIdx.x % kWarp, part = lane % kRowLanes, group = lane / kRowLanes;
  // Beyond the last chunk the last one again, for nothing.
  const auto ask = [&](int first, int i, int piece) {
    const int count = min(kWarp, chunks - first);
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      source.ask(j, first + min(i + group + j * kGroups, count - 1), (piece * kRowLanes + part) * 4);
    }
  };
  float sum = 0.0f, value[kPieces][4] = {};
  ask(0, 0, 0);
  const float2 nothing = make_float2(-INFINITY, 0.0f), early = lane < chunks ? source.stat(lane) : nothing;
  float top = early.x;
  for (int i = lane + kWarp; i < chunks; i += kWarp) top = fmaxf(top, source.stat(i).x);
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
  const float reference = top == -INFINITY ? 0.0f : top;
  for (int first = 0; first < chunks; first += kWarp) {
    const int count = min(kWarp, chunks - first);
    const float2 of_lane = first == 0 ? early : lane < count ? source.stat(first + lane) : nothing;
    const float weight = exp2_approx(of_lane.x - reference);
    sum = fmaf(of_lane.y, weight, sum);
#pragma unroll 1
    for (int i = 0; i < count; i += kGroups * kTogether) {
      float w[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int at = i + group + j * kGroups;
        w[j] = __shfl_sync(0xffffffffu, weight, at % kWarp);
        w[j] = at < count ? w[j] : 0.0f;
      }
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        if (first + i + p > 0) ask(first, i, p);
        source.wait();
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          const float4 x = source.value(j);
          value[p][0] = fmaf(w[j], x.x, value[p][0]);
          value[p][1] = fmaf(w[j], x.y, value[p][1]);
          value[p][2] = fmaf(w[j], x.z, value[p][2]);
          value[p][3] = fmaf(w[j], x.w, value[p][3]);
        }
      }
    }
  }
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int shift = kRowLanes; shift < kWarp; shift *= 2) {
        value[p][e] += __shfl_xor_sync(0xffffffffu, value[p][e], shift);
      }
      value[p][e] *= inverse;
    }
    if (group == 0) write((p * kRowLanes + part) * 4, value[p]);
  }
  return make_float2(top, sum);
}

}  // namespace inkling::cuda
