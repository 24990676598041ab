// What the kernels of decode for the common case share: D = 64 in 16 bits and at most eight query rows per
// key/value head. A product has 16 rows, so eight of each are empty and cost nothing but that. Tiles are rows
// of 128 bytes, whose 16-byte piece p lies at p ^ (row % 8): eight rows meet 32 banks without padding. Order
// and rounding are those of decode_chunk.cuh, so bits are the same.
#pragma once

#include "attention/cuda/decode_results.cuh"

namespace inkling::cuda {

constexpr int kFewDim = 64, kFewRows = 8;
constexpr int kRowBytes = kFewDim * 2, kTileBytes = kDecodeChunk * kRowBytes;  // K or V of a chunk
constexpr int kChunkBytes = 2 * kTileBytes;                                    // K, then V

/// Asks for the 64 rows at `from`, `step` bytes apart, of which the first `rows` are there; zeros for the
/// others. By a warp.
__device__ inline void copy_tile(unsigned char* tile, const char* from, std::int64_t step, int rows) {
  const int row = threadIdx.x % kWarp / 8, piece = threadIdx.x % 8;
  unsigned char* const even = tile + row * kRowBytes + ((piece ^ row) << 4);
  unsigned char* const odd = tile + (row + 4) * kRowBytes + ((piece ^ (row + 4)) << 4);
  from += row * step + piece * 16;
  const auto to = [&](int i) { return (i % 2 ? odd : even) + i / 2 * 8 * kRowBytes; };
  if (rows >= kDecodeChunk) {
#pragma unroll
    for (int i = 0; i < kDecodeChunk / 4; ++i) copy16_async(to(i), from + i * 4 * step, true);
    return;
  }
  const char* const some = from - row * step;  // where nothing is read
#pragma unroll 1
  for (int i = 0; i < kDecodeChunk / 4; ++i) {
    const bool there = row + i * 4 < rows;
    copy16_async(to(i), there ? from + i * 4 * step : some, there);
  }
}

/// K (which = 0) or V of a chunk. page: of the chunk, where there are pages; first: of the sequence's packed
/// rows.
__device__ inline void copy_chunk(unsigned char* tile, const ForwardArgs& a, int which, int kv_head,
                                  int chunk, int keys, const std::byte* page, int first) {
  const int rows = keys - chunk * kDecodeChunk;
  if (rows <= 0) {
    copy_tile(tile, static_cast<const char*>(a.q.data), 0, 0);
  } else if (a.pages.table == nullptr) {
    const HeadRows& all = which == 0 ? a.k : a.v;
    copy_tile(tile, row_address(all, first + chunk * kDecodeChunk, kv_head, 2), all.row * 2, rows);
  } else {
    const std::int64_t at = (which == 0 ? a.pages.k_offset : a.pages.v_offset) + kv_head * a.pages.head * 2;
    copy_tile(tile, reinterpret_cast<const char*>(page) + at, kRowBytes, rows);
  }
}

/// Until all but the last kPending tiles that the warp has asked for are there.
template <int kPending>
__device__ inline void await() {
  copy_wait<kPending>();
  __syncwarp();
}

/// Whether a chunk has keys that are not in their page yet.
__device__ inline bool has_fresh(int chunk, int keys, int old) {
  return old < min(keys, (chunk + 1) * kDecodeChunk);
}
/// Puts them there, and into the tiles.
__device__ inline void take_fresh(unsigned char* tiles, const ForwardArgs& a, const DecodeUnit& unit,
                                  int old) {
  const int first = unit.chunk * kDecodeChunk;
  const int begin = max(old - first, 0), end = min(unit.keys - first, kDecodeChunk);
  const std::int64_t row = a.fresh.cu_new[unit.sequence] + first - old;
  std::byte* const page =
      const_cast<std::byte*>(a.pages.table[unit.sequence * a.pages.table_stride + unit.chunk]) +
      unit.kv_head * a.pages.head * 2;
#pragma unroll 1
  for (int i = begin * 16 + threadIdx.x % kWarp; i < end * 16; i += kWarp) {
    const int key = i / 16, piece = i % 8;
    const bool value = i / 8 % 2 != 0;
    const char* const from = value ? row_address(a.fresh.v, row + key, unit.kv_head, 2)
                                   : row_address(a.fresh.k, row + key, unit.kv_head, 2);
    const uint4 x = reinterpret_cast<const uint4*>(from)[piece];
    reinterpret_cast<uint4*>(tiles + (value ? kTileBytes : 0) + key * kRowBytes)[piece ^ key % 8] = x;
    reinterpret_cast<uint4*>(page + (value ? a.pages.v_offset : a.pages.k_offset) + key * kRowBytes)[piece] =
        x;
  }
  __syncwarp();
}

/// Query rows as left operands: lane 4g + t has columns of row g.
struct QueryRows {
  std::uint32_t piece[kFewDim / 16][2];

  /// from: the row of this lane.
  __device__ void read(const void* from, bool is_there) {
    const auto* const words = static_cast<const std::uint32_t*>(from) + threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kFewDim / 8; ++i) piece[i / 2][i % 2] = is_there ? words[i * 4] : 0u;
  }
};

/// What row g of a lane has of a chunk: ChunkRows, of the upper half of 16 rows alone.
struct FewRows {
  float value[kFewDim / 8][4] = {}, top, sum;  // of value, [0] and [1]

  __device__ float factor() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }
};

using ChunkScores = float[kDecodeChunk / 8][4];

/// Scores of a chunk; `tile` is free after.
template <class T>
__device__ inline void score_few(ChunkScores& s, const QueryRows& q, const unsigned char* tile) {
  const int lane = threadIdx.x % kWarp;
  const std::uint32_t k = shared_address(tile) + (lane / 16 * 8 + lane % 8) * kRowBytes;
  std::uint32_t r[4];
#pragma unroll
  for (int i = 0; i < kFewDim / 16; ++i) {
    const typename Mma<T>::A left{{q.piece[i][0], 0u, q.piece[i][1], 0u}};
    const std::uint32_t at = k + (((i * 2 + lane / 8 % 2) ^ lane % 8) << 4);
#pragma unroll
    for (int n = 0; n < kDecodeChunk / 8; n += 2) {
      ldmatrix_x4(r, at + n * 8 * kRowBytes);
      Mma<T>::multiply(s[n], left, {{r[0], r[1]}});
      Mma<T>::multiply(s[n + 1], left, {{r[2], r[3]}});
    }
  }
}

/// Scores to base 2.
__device__ inline void scale_few(ChunkScores& s, float scale) {
#pragma unroll
  for (int n = 0; n < kDecodeChunk / 8; ++n) s[n][0] *= scale, s[n][1] *= scale;
}

/// Hidden scores to −inf.
__device__ inline void mask_few(ChunkScores& s, const ForwardArgs& a, const DecodeUnit& unit) {
  const KeyWindow window = key_window(a.mask.kind, a.mask.left, a.mask.right, unit.queries, unit.keys);
  const int query = unit.query(threadIdx.x % kWarp / 4),
            column = unit.chunk * kDecodeChunk + threadIdx.x % 4 * 2;
  const int low = query + window.from - column, high = min(query + window.until, unit.keys) - column;
#pragma unroll
  for (int n = 0; n < kDecodeChunk / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) s[n][e] = n * 8 + e >= low && n * 8 + e < high ? s[n][e] : -INFINITY;
  }
}

/// Scores to weights, with their maximum and sum.
__device__ inline void weigh_few(ChunkScores& s, FewRows& rows) {
  float top = -INFINITY, sum = 0.0f;
#pragma unroll
  for (int n = 0; n < kDecodeChunk / 8; ++n) top = fmaxf(top, fmaxf(s[n][0], s[n][1]));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
  top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
  const float reference = top == -INFINITY ? 0.0f : top;
#pragma unroll
  for (int n = 0; n < kDecodeChunk / 8; ++n) {
    s[n][0] = exp2_approx(s[n][0] - reference);
    s[n][1] = exp2_approx(s[n][1] - reference);
    sum += s[n][0] + s[n][1];
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  rows.top = top;
  rows.sum = sum;
}

/// The weighted sum of a chunk's values; `tile` is free after.
template <class T>
__device__ inline void value_few(FewRows& rows, const ChunkScores& s, const unsigned char* tile) {
  const int lane = threadIdx.x % kWarp;
  const std::uint32_t v = shared_address(tile) + lane % 16 * kRowBytes;
  std::uint32_t r[4];
#pragma unroll
  for (int j = 0; j < kDecodeChunk / 16; ++j) {
    const typename Mma<T>::A left{
        {pack2<T>(s[2 * j][0], s[2 * j][1]), 0u, pack2<T>(s[2 * j + 1][0], s[2 * j + 1][1]), 0u}};
#pragma unroll
    for (int n = 0; n < kFewDim / 8; n += 2) {
      ldmatrix_x4_trans(r, v + j * 16 * kRowBytes + (((n + lane / 16) ^ lane % 8) << 4));
      Mma<T>::multiply(rows.value[n], left, {{r[0], r[1]}});
      Mma<T>::multiply(rows.value[n + 1], left, {{r[2], r[3]}});
    }
  }
}

/// The result of a row whose only chunk this is.
template <class T>
__device__ inline void write_few(const ForwardArgs& a, const DecodeUnit& unit, const FewRows& rows) {
  const int row = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
  if (row >= unit.rows) return;
  if (t == 0) write_lse(a, unit, row, rows.top, rows.sum);
  const bool as_f32 = a.out_dtype == DType::f32;
  char* const to =
      row_address(a.out, unit.q_begin + unit.query(row), unit.head(row), as_f32 ? sizeof(float) : sizeof(T));
  const float factor = rows.factor();
#pragma unroll
  for (int n = 0; n < kFewDim / 8; ++n)
    store_pair<T>(to, as_f32, n * 8 + 2 * t, kFewDim, true, rows.value[n][0] * factor,
                  rows.value[n][1] * factor);
}

/// Row `row` of a unit from its partial results.
template <class T, int kTogether, class Source>
__device__ inline void fold_few(const ForwardArgs& a, const DecodeUnit& unit, int row, Source& partials) {
  const bool as_f32 = a.out_dtype == DType::f32;
  char* const to =
      row_address(a.out, unit.q_begin + unit.query(row), unit.head(row), as_f32 ? sizeof(float) : sizeof(T));
  const float2 total = fold_chunks<kFewDim, kTogether>(unit.chunks, partials, [&](int d, const float(&v)[4]) {
    store_pair<T>(to, as_f32, d, kFewDim, true, v[0], v[1]);
    store_pair<T>(to, as_f32, d + 2, kFewDim, true, v[2], v[3]);
  });
  if (threadIdx.x % kWarp == 0) write_lse(a, unit, row, total.x, total.y);
}

}  // namespace inkling::cuda
