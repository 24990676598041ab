// forward(): attention of up to 48 query rows over the keys and values of one head. The one forward loop of
// the CPU: cached decode and prefill, and the flash and decode backends of sdpa(). Include only from sources
// of one ISA.
//
//   out[r] = Σ_j p_j v_j / Σ_j p_j,   p_j = 2^(s_j − m),   s_j = (scale · log2 e · q_r) · k_j,   m = running
//   max of s, or up to kRise less
//
// Shapes: Q (48, D), S (48, 64), accumulator (48, Dp) as f32 in scratch; K [D][64] and V [64][Dp] blocks of
// f32, or of bf16 or f16, widened exactly. Sources: online softmax, Milakov & Gimelshein 2018; tiling,
// FlashAttention-2 (Dao 2023, Alg. 1); splits, Flash-Decoding. Numerics: per row, keys in blocks of 64 from
// position 0; one FMA chain per score over rising d and per output over rising j; partial results of 512 keys
// folded in order. m follows a row's own maximum by steps of kRise or more, so that it seldom rescales, and a
// row meets no key that it does not see, so its bits depend on nothing but itself. Tolerance against f64:
// 4e-6 · √D relative to max |v| for f32. Oracle: math backend and tests/attention. Cost: 4·D flops per (row,
// key); one block of K and V (32 KiB at D = 64, f32) stays in L1/L2 for all 48 rows, so prefill is bound by
// FMA and decode (1 row) by reading K and V once. Measured: attention/README.md. Longer than a header: it is
// the source of one loop, compiled once per ISA.
#pragma once

#include "attention/cpu/exp2.h"
#include "attention/cpu/packed_rows.h"
#include "attention/cpu/query_rows.h"
#include "attention/cpu/score_mask.h"
#include "engine/cpu/tile.h"

namespace inkling::cpu {

template <class V>
struct Forward : QueryRows<V> {
  using F = typename V::F;
  using Rows = QueryRows<V>;
  using State = typename Rows::State;
  using Rows::for_runs, Rows::high, Rows::low, Rows::minus_infinity, Rows::start, Rows::zero;
  static constexpr int L = V::kLanes;
  static constexpr std::size_t kAhead = std::size_t{8} << 10;
  // A weight may be 2^kRise before its row is rescaled (FlashAttention-4): f32 has room, and sums keep their
  // relative error. The branch is then seldom taken and well predicted.
  static constexpr float kRise = 8.0f;
  static constexpr float kLn2 = 0.693147180559945309f;

  static void scale_row(float* p, std::int64_t count, F factor) {
    for (std::int64_t i = 0; i < count; i += L) V::store(p + i, V::mul(V::load(p + i), factor));
  }

  // Scores of one row and block to weights: s in place to p, running max and sum, accumulator rescaled.
  // Only scores lo … hi−1 of the `vectors` · L in s are visible.
  static void softmax_row(float* s, int vectors, std::int64_t lo, std::int64_t hi, float* max, float* sum,
                          float* acc, std::int64_t padded) {
    if (lo > 0 || hi < vectors * L) {
      const F hidden = V::set1(minus_infinity());
      for (int v = 0; v < vectors; ++v) {
        const F x = V::select_upto(V::load(s + v * L), hidden, v * L, hi - 1);
        V::store(s + v * L, V::select_upto(hidden, x, v * L, lo - 1));
      }
    }
    F top = V::load(s);
    for (int v = 1; v < vectors; ++v) top = V::max(top, V::load(s + v * L));
    const float block_max = V::reduce_max(top);
    if (block_max > *max + kRise) {
      const F factor = exp2<V>(V::set1(*max - block_max));
      V::store(sum, V::mul(V::load(sum), factor));
      scale_row(acc, padded, factor);
      *max = block_max;
    }
    // A row that has seen only −inf: any finite reference gives weights of 0 (and NaN of NaN).
    const F reference = V::set1(*max == minus_infinity() ? 0.0f : *max);
    F total = V::load(sum);
    for (int v = 0; v < vectors; ++v) {
      const F p = exp2<V>(V::sub(V::load(s + v * L), reference));
      V::store(s + v * L, p);
      total = V::add(total, p);
    }
    V::store(sum, total);
  }

  // A tile of one row at the edge of a mask, where calling one would cost more than its sums.
  template <class W>
  static void weigh_few(const State& s, std::int64_t row, std::int64_t lo, std::int64_t hi, const W* v,
                        std::ptrdiff_t v_row) {
    const float* weights = s.scores + row * kKeyBlock;
    float* acc = s.acc + row * s.padded;
    for (std::int64_t d = 0; d < s.padded; d += L) {
      F sum = V::load(acc + d);
      for (std::int64_t j = lo; j < hi; ++j)
        sum = V::fma(V::set1(weights[j]), V::load(v + j * v_row + d), sum);
      V::store(acc + d, sum);
    }
  }

  // acc += P · V for rows [first, last), each over its own visible keys lo … hi−1 of the block and in rising
  // order: rows of a tile share the keys that all of them see, the rest goes row by row.
  template <class W>
  static void weigh_values(const State& s, std::int64_t first, std::int64_t last, std::int64_t base,
                           const W* v, std::ptrdiff_t v_row) {
    const int vectors = static_cast<int>(s.padded / L);
    const auto span = [&](std::int64_t row, std::int64_t rows, std::int64_t lo, std::int64_t hi) {
      if (lo >= hi) return;
      if (rows == 1 && hi - lo < V::kTileRows) return weigh_few(s, row, lo, hi, v, v_row);
      product<V>(s.scores + row * kKeyBlock + lo, kKeyBlock, rows, v + lo * v_row, v_row, hi - lo, vectors,
                 s.acc + row * s.padded, s.padded, Sum::go_on);
    };
    if (low(s, last - 1, base) == 0 && high(s, first, base) == high(s, last - 1, base)) {
      return span(first, last - first, 0, high(s, first, base));
    }
    for (std::int64_t row = first; row < last; row += V::kTileRows) {
      const std::int64_t rows = last - row < V::kTileRows ? last - row : V::kTileRows;
      const std::int64_t lo = low(s, row + rows - 1, base), hi = high(s, row, base);
      const bool shared = lo < hi;
      for (std::int64_t r = row; r < row + rows; ++r)
        span(r, 1, low(s, r, base), shared ? lo : high(s, r, base));
      if (!shared) continue;
      span(row, rows, lo, hi);
      for (std::int64_t r = row; r < row + rows; ++r) span(r, 1, hi, high(s, r, base));
    }
  }

  // out[r][j] = Σ_d x[r][d] · k[d][j] for j < hi, in whole vectors.
  template <class K>
  static void scores_of(const float* x, std::ptrdiff_t x_row, std::int64_t rows, const K* k, std::int64_t dim,
                        std::int64_t hi, float* out) {
    product<V>(x, x_row, rows, k, kKeyBlock, dim, static_cast<int>((hi + L - 1) / L), out, kKeyBlock,
               Sum::start);
  }

  template <class W>
  static const float* widen(const W* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; i += L) V::store(to + i, V::load(from + i));
    return to;
  }

  // k: [D][64]; v: a row every v_row elements.
  template <class K, class W>
  static void block_as(const ForwardTask& task, const State& s, std::int64_t first, std::int64_t last,
                       std::int64_t base, const K* k, const W* v, std::ptrdiff_t v_row) {
    const std::int64_t width = high(s, last - 1, base);
    for_runs(s, first, last, base, [&](std::int64_t row, std::int64_t rows, std::int64_t hi) {
      scores_of(s.q + row * s.dim, s.dim, rows, k, s.dim, hi, s.scores + row * kKeyBlock);
    });
    for (std::int64_t r = first; r < last; ++r) {
      float* scores = s.scores + r * kKeyBlock;
      if (task.mask.any()) ScoreRows<V>::mask(task.mask, s.query[r], s.head[r], base, width, scores);
      const int vectors = static_cast<int>((high(s, r, base) + L - 1) / L);
      softmax_row(scores, vectors, low(s, r, base), high(s, r, base), s.max + r, s.sum + r * L,
                  s.acc + r * s.padded, s.padded);
      if (task.dropout.threshold != 0)
        ScoreRows<V>::drop(task.dropout, s.query[r], s.head[r], base, width, scores);
    }
    weigh_values(s, first, last, base, v, v_row);
  }

  // One block of keys of one head for the rows that see any of it: what rows see moves forward with r, so
  // they are consecutive.
  template <class W>
  static void block(const ForwardTask& task, const State& s, std::int64_t index, std::int64_t head) {
    const std::int64_t base = index * kKeyBlock;
    std::int64_t first = head * s.head_rows, last = first + s.head_rows;
    while (first < last && s.end[first] <= base) ++first;
    while (first < last && s.begin[last - 1] >= base + kKeyBlock) --last;
    if (first == last) return;
    if (task.packed()) return packed_block<W>(task, s, first, last, base, head);
    const std::size_t offset = static_cast<std::size_t>(head) * task.head_stride;
    const auto* k = reinterpret_cast<const W*>(task.kv.k(index) + offset);
    const auto* v = reinterpret_cast<const W*>(task.kv.v(index) + offset);
    if constexpr (sizeof(W) != sizeof(float)) {
      if (last - first >
          2 * V::kTileRows) {  // widening once beats widening in every tile; the bits are the same
        const std::int64_t values = high(s, last - 1, base) * s.padded;
        return block_as(task, s, first, last, base, widen(k, kKeyBlock * s.dim, s.wide_k),
                        widen(v, values, s.wide_v), s.padded);
      }
    }
    block_as(task, s, first, last, base, k, v, s.padded);
  }

  // The same of packed rows: values that fill whole vectors are read where they lie.
  template <class W>
  static void packed_block(const ForwardTask& task, const State& s, std::int64_t first, std::int64_t last,
                           std::int64_t base, std::int64_t head) {
    using Rows = typename PackedRows<V>::template Rows<W>;
    const auto rows = [&](const HeadMatrix& m) {
      return Rows{static_cast<const W*>(m.data) + base * m.row + head * m.head, m.row};
    };
    const Rows k = rows(task.packed_k), v = rows(task.packed_v);
    const std::int64_t width = high(s, last - 1, base);
    PackedRows<V>::keys(k, v, width, task.keys - base, s.dim, s.wide_k);
    if (s.dim == s.padded) return block_as(task, s, first, last, base, s.wide_k, v.data, v.stride);
    PackedRows<V>::values(v, width, s.dim, s.padded, s.wide_v);
    block_as(task, s, first, last, base, s.wide_k, s.wide_v, s.padded);
  }

  // A row or two read faster than they compute: the start of the next run of blocks is asked for during this
  // one. Within a run tile.h does the same, and packed_rows.h for packed rows.
  static void prefetch(const ForwardTask& task, std::int64_t index) {
    if (task.packed()) return;
    const auto* next = reinterpret_cast<const char*>(task.kv.k(index));
    for (std::size_t byte = 0; byte < kAhead; byte += 64) __builtin_prefetch(next + byte);
  }

  static float scalar_exp2(float t) {
    float lanes[L];
    V::store(lanes, exp2<V>(V::set1(t)));
    return lanes[0];
  }

  // One partial result of row r into its total, which the first one is.
  static void fold_row(float max, float sum, const float* acc, const State& s, std::int64_t r) {
    if (sum == 0.0f) return;
    float* all = s.all_acc + r * s.padded;
    if (s.all_sum[r] == 0.0f) {
      for (std::int64_t d = 0; d < s.padded; d += L) V::store(all + d, V::load(acc + d));
      s.all_sum[r] = sum;
      s.all_max[r] = max;
      return;
    }
    const float top = max > s.all_max[r] ? max : s.all_max[r];
    const float old_factor = scalar_exp2(s.all_max[r] - top), factor = scalar_exp2(max - top);
    const F a = V::set1(old_factor), b = V::set1(factor);
    for (std::int64_t d = 0; d < s.padded; d += L) {
      V::store(all + d, V::fma(V::load(acc + d), b, V::mul(V::load(all + d), a)));
    }
    s.all_sum[r] = s.all_sum[r] * old_factor + sum * factor;
    s.all_max[r] = top;
  }

  // The partial result of keys begin … end−1, within one split, in s.max, s.sum and s.acc.
  template <class W>
  static void split(const ForwardTask& task, const State& s, std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = 0; r < s.rows; ++r) s.max[r] = minus_infinity();
    zero(s.sum, s.rows * L);
    zero(s.acc, s.rows * s.padded);
    for (std::int64_t b = begin / kKeyBlock; b * kKeyBlock < end; ++b) {
      for (std::int64_t head = 0; head < task.heads; ++head) {
        if (s.head_rows <= 2 && head == task.heads - 1 && (b + 1) * kKeyBlock < s.end[0])
          prefetch(task, b + 1);
        block<W>(task, s, b, head);
      }
    }
  }

  template <class T>
  static void store_row(const float* acc, float factor, std::int64_t dim, T* out) {
    std::int64_t d = 0;
    for (; d + L <= dim; d += L) V::store(out + d, V::mul(V::load(acc + d), V::set1(factor)));
    for (; d < dim; ++d) out[d] = T(acc[d] * factor);
  }

  static void finish(const ForwardTask& task, const State& s) {
    for (std::int64_t r = 0; r < s.rows; ++r) {
      const std::int64_t query = s.query[r], head = s.head[r];
      const float sum = s.all_sum[r], factor = sum == 0.0f ? 0.0f : 1.0f / sum;
      if (sum == 0.0f) zero(s.all_acc + r * s.padded, s.padded);  // nothing was folded into it
      const std::ptrdiff_t at = query * task.out_row + head * task.out_head;
      const float* acc = s.all_acc + r * s.padded;
      switch (task.out_dtype) {
        case DType::bf16:
          store_row(acc, factor, s.dim, static_cast<bf16*>(task.out) + at);
          break;
        case DType::f16:
          store_row(acc, factor, s.dim, static_cast<f16*>(task.out) + at);
          break;
        default:
          store_row(acc, factor, s.dim, static_cast<float*>(task.out) + at);
          break;
      }
      if (task.lse != nullptr) {
        const float lse = sum == 0.0f ? minus_infinity() : (s.all_max[r] + __builtin_log2f(sum)) * kLn2;
        task.lse[query * task.lse_row + head * task.lse_head] = lse;
      }
    }
  }

  // Calls body(begin, end) with the type of the blocks for every split from `first` on that any row sees, at
  // most `count` of them.
  template <class Body>
  static void for_splits(const ForwardTask& task, const State& s, std::int64_t first, std::int64_t count,
                         Body&& body) {
    const std::int64_t until = s.end[s.rows - 1];
    for (std::int64_t i = first; i < first + count && i * kKeySplit < until; ++i) {
      const std::int64_t begin = i * kKeySplit, end = until < begin + kKeySplit ? until : begin + kKeySplit;
      switch (task.kv.dtype) {
        case DType::bf16:
          split<bf16>(task, s, begin, end);
          break;
        case DType::f16:
          split<f16>(task, s, begin, end);
          break;
        default:
          split<float>(task, s, begin, end);
          break;
      }
      body();
    }
  }

  static void run(const ForwardTask& task, std::byte* scratch) {
    if (task.row_begin >= task.row_end) return;
    const State s = start(task, scratch);
    for_splits(task, s, s.begin[0] / kKeySplit, task.keys, [&] {
      for (std::int64_t r = 0; r < s.rows; ++r) {
        fold_row(s.max[r], V::reduce_add(V::load(s.sum + r * L)), s.acc + r * s.padded, s, r);
      }
    });
    finish(task, s);
  }

  // A row of a partial result: max, sum, padding to a cache line, acc.
  static float* partial(const ForwardTask& task, const State& s, std::int64_t split_index, std::int64_t r) {
    return task.partials + split_index * task.partial_floats() + r * (s.padded + 16);
  }

  static void run_split(const ForwardTask& task, std::byte* scratch) {
    const State s = start(task, scratch);
    for (std::int64_t r = 0; r < s.rows; ++r) {
      float* out = partial(task, s, task.split, r);
      out[0] = minus_infinity();
      out[1] = 0.0f;
    }
    for_splits(task, s, task.split, 1, [&] {
      for (std::int64_t r = 0; r < s.rows; ++r) {
        float* out = partial(task, s, task.split, r);
        out[0] = s.max[r];
        out[1] = V::reduce_add(V::load(s.sum + r * L));
        for (std::int64_t d = 0; d < s.padded; d += L)
          V::store(out + 16 + d, V::load(s.acc + r * s.padded + d));
      }
    });
  }

  static void run_combine(const ForwardTask& task, std::byte* scratch) {
    const State s = start(task, scratch);
    for (std::int64_t i = 0; i < task.split; ++i) {
      for (std::int64_t r = 0; r < s.rows; ++r) {
        const float* in = partial(task, s, i, r);
        fold_row(in[0], in[1], in + 16, s, r);
      }
    }
    finish(task, s);
  }
};

}  // namespace inkling::cpu
