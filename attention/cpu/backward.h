// backward(): gradients of attention for one (sequence, key/value head), by recomputing the weights block by
// block. Include only from sources of one ISA.
//
//   P = 2^(S − lse),  δ_r = dO_r · O_r,  dP = (dO Vᵀ) ∘ M,  dS = P ∘ (dP − δ)      M: dropout's 0 or 1/(1−p)
//   dV = (P ∘ M)ᵀ dO,  dQ = scale · dS K,  dK = scale · dSᵀ Q,  dbias = dS
//
// Shapes: 48 query rows against 64 keys at a time; K and V both as [D][64] and as [64][Dp] blocks; sums in
// f32. Source: FlashAttention-2 (Dao 2023, Alg. 2). Oracle: math backend, finite differences. Numerics: query
// blocks in rising order for every key, so dK and dV are sums in one fixed order; one task owns all of a
// head, hence no atomics and the same bits for any threads and batch. O(T) memory. Cost: five products, 10·D
// flops per (row, key), bound by FMA; P and dS are transposed in registers on the way.
#pragma once

#include "attention/cpu/forward.h"
#include "engine/cpu/transpose.h"

namespace inkling::cpu {

template <class V>
struct Backward {
  using F = typename V::F;
  using Fwd = Forward<V>;
  using State = typename Fwd::State;
  static constexpr int L = V::kLanes;
  static constexpr int kBlockVectors = static_cast<int>(kKeyBlock) / L;
  static constexpr std::int64_t kKeyRun = 16;  // keys that go together where rows see different ends

  struct Buffers {
    float *q, *dout, *dq;          // (48, Dp): Q in base-2 units, dO, the sum of dQ
    float* dscores;                // (48, 64) dP, then dS
    float *weights_t, *dscores_t;  // (64, 48)
    float *delta, *lse;            // (48), lse in base-2 units
  };

  static Buffers carve(const State& s, std::byte* scratch) {
    auto* floats = reinterpret_cast<float*>(scratch + (forward_scratch_bytes(s.dim) + 63) / 64 * 64);
    const auto take = [&](std::int64_t count) {
      float* part = floats;
      floats += count;
      return part;
    };
    Buffers b{};
    b.q = take(kQueryRows * s.padded);
    b.dout = take(kQueryRows * s.padded);
    b.dq = take(kQueryRows * s.padded);
    b.dscores = take(kQueryRows * kKeyBlock);
    b.weights_t = take(kKeyBlock * kQueryRows);
    b.dscores_t = take(kKeyBlock * kQueryRows);
    b.delta = take(kQueryRows);
    b.lse = take(kQueryRows);
    return b;
  }

  // A row as f32, zero for d in [D, Dp).
  static void load_row(const HeadMatrix& from, std::int64_t row, std::int64_t head, const State& s,
                       float* to) {
    const std::ptrdiff_t at = row * from.row + head * from.head;
    const auto load = [&]<class T>(const T* data) {
      PackedRows<V>::values(typename PackedRows<V>::template Rows<T>{data + at, 0}, 1, s.dim, s.padded, to);
    };
    switch (from.dtype) {
      case DType::bf16:
        return load(static_cast<const bf16*>(from.data));
      case DType::f16:
        return load(static_cast<const f16*>(from.data));
      default:
        return load(static_cast<const float*>(from.data));
    }
  }

  // Q, dO, δ and lse of a block of rows.
  static void load_rows(const BackwardTask& task, const ForwardTask& rows, const State& s, const Buffers& b) {
    const HeadMatrix outs{rows.out, rows.out_dtype, rows.out_row, rows.out_head};
    alignas(64) float out[kMaxHeadDim];
    for (std::int64_t r = 0; r < s.rows; ++r) {
      const std::int64_t query = s.query[r], head = s.head[r];
      float* dout = b.dout + r * s.padded;
      load_row(task.dout, query, head, s, dout);
      load_row(outs, query, head, s, out);
      F delta = V::zero();
      for (std::int64_t d = 0; d < s.padded; d += L)
        delta = V::fma(V::load(dout + d), V::load(out + d), delta);
      b.delta[r] = V::reduce_add(delta);
      b.lse[r] = rows.lse[query * rows.lse_row + head * rows.lse_head] * Fwd::kLog2E;
    }
    PackedRows<V>::values(typename PackedRows<V>::template Rows<float>{s.q, s.dim}, s.rows, s.dim, s.padded,
                          b.q);
    Fwd::zero(b.dq, s.rows * s.padded);
  }

  // Row r: scores to weights (with dropout) and dP to dS; zero where the row sees nothing, whatever was
  // there.
  static void differentiate_row(const BackwardTask& task, const ForwardTask& rows, const State& s,
                                const Buffers& b, std::int64_t r, std::int64_t base, std::int64_t width) {
    float* scores = s.scores + r * kKeyBlock;
    float* dscores = b.dscores + r * kKeyBlock;
    const std::int64_t query = s.query[r], head = s.head[r];
    if (rows.mask.any()) ScoreRows<V>::mask(rows.mask, query, head, base, width, scores);
    const std::int64_t lo = Fwd::low(s, r, base), hi = Fwd::high(s, r, base);
    const bool blind = b.lse[r] == Fwd::minus_infinity();
    const F lse = V::set1(blind ? 0.0f : b.lse[r]), delta = V::set1(b.delta[r]);
    float keep[kKeyBlock];
    for (float& x : keep) x = 1.0f;
    if (rows.dropout.threshold != 0) ScoreRows<V>::drop(rows.dropout, query, head, base, kKeyBlock, keep);
    for (int v = 0; v < kBlockVectors; ++v) {
      const auto seen = [&](F x) {
        x = V::select_upto(x, V::zero(), v * L, blind ? -1 : hi - 1);
        return V::select_upto(V::zero(), x, v * L, lo - 1);
      };
      const F p = exp2<V>(V::sub(V::load(scores + v * L), lse)), m = V::load(keep + v * L);
      V::store(scores + v * L, seen(V::mul(p, m)));
      V::store(dscores + v * L, seen(V::mul(p, V::sub(V::mul(V::load(dscores + v * L), m), delta))));
    }
    if (task.dbias == nullptr) return;
    float* dbias = task.dbias + head * rows.mask.head + query * rows.mask.row + base * rows.mask.key;
    for (std::int64_t j = 0; j < width; ++j) dbias[j * rows.mask.key] += dscores[j];
  }

  static void block(const BackwardTask& task, const ForwardTask& rows, const State& s, const Buffers& b,
                    std::int64_t index) {
    const std::int64_t base = index * kKeyBlock;
    std::int64_t first = 0, last = s.rows;
    while (first < last && s.end[first] <= base) ++first;
    while (first < last && s.begin[last - 1] >= base + kKeyBlock) --last;
    if (first == last) return;
    const std::int64_t count = last - first, width = Fwd::high(s, last - 1, base);
    const int dim_vectors = static_cast<int>(s.padded / L);
    const auto* k = reinterpret_cast<const float*>(rows.kv.k(index));
    const auto* v = reinterpret_cast<const float*>(task.swapped.k(index));
    const auto* k_rows = reinterpret_cast<const float*>(task.swapped.v(index));
    Fwd::for_runs(s, first, last, base, [&](std::int64_t row, std::int64_t run, std::int64_t hi) {
      Fwd::scores_of(s.q + row * s.dim, s.dim, run, k, s.dim, hi, s.scores + row * kKeyBlock);
      Fwd::scores_of(b.dout + row * s.padded, s.padded, run, v, s.dim, hi, b.dscores + row * kKeyBlock);
      for (std::int64_t r = row; r < row + run; ++r) differentiate_row(task, rows, s, b, r, base, width);
      product<V>(b.dscores + row * kKeyBlock, kKeyBlock, run, k_rows, s.padded, hi, dim_vectors,
                 b.dq + row * s.padded, s.padded, Sum::go_on);
    });
    const std::int64_t squares = (count + L - 1) / L * L;  // whole ones, within the buffers
    const std::int64_t from = first + squares <= kQueryRows ? first : kQueryRows - squares;
    transpose<V>(s.scores + from * kKeyBlock, kKeyBlock, squares, kKeyBlock, b.weights_t, kQueryRows);
    transpose<V>(b.dscores + from * kKeyBlock, kKeyBlock, squares, kKeyBlock, b.dscores_t, kQueryRows);
    // Keys in runs too, each over the rows that see any of it.
    const std::int64_t step = Fwd::high(s, first, base) == width ? kKeyBlock : kKeyRun;
    for (std::int64_t key = 0; key < width; key += step) {
      const std::int64_t run = width - key < step ? width - key : step;
      while (s.end[first] <= base + key) ++first;
      const auto add = [&](const float* factors, const float* x, float* sum) {
        product<V>(factors + key * kQueryRows + (first - from), kQueryRows, run, x + first * s.padded,
                   s.padded, last - first, dim_vectors, sum + (base + key) * s.padded, s.padded, Sum::go_on);
      };
      add(b.weights_t, b.dout, task.dv_sum);
      add(b.dscores_t, b.q, task.dk_sum);
    }
  }

  static void store_row(const HeadMatrix& to, std::int64_t row, std::int64_t head, const float* from,
                        float factor, std::int64_t dim) {
    const std::ptrdiff_t at = row * to.row + head * to.head;
    switch (to.dtype) {
      case DType::bf16:
        return Fwd::store_row(from, factor, dim, static_cast<bf16*>(to.data) + at);
      case DType::f16:
        return Fwd::store_row(from, factor, dim, static_cast<f16*>(to.data) + at);
      default:
        return Fwd::store_row(from, factor, dim, static_cast<float*>(to.data) + at);
    }
  }

  static void run(const BackwardTask& task, std::byte* scratch) {
    const std::int64_t keys = task.forward.keys, padded = task.forward.kv.padded_dim();
    const std::int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
    Fwd::zero(task.dk_sum, blocks * kKeyBlock * padded);
    Fwd::zero(task.dv_sum, blocks * kKeyBlock * padded);
    ForwardTask rows = task.forward;
    for (std::int64_t begin = 0; begin < task.forward.row_end; begin += kQueryRows) {
      rows.row_begin = begin;
      rows.row_end = begin + kQueryRows < task.forward.row_end ? begin + kQueryRows : task.forward.row_end;
      const State s = Fwd::start(rows, scratch);
      const Buffers b = carve(s, scratch);
      load_rows(task, rows, s, b);
      for (std::int64_t i = 0; i < blocks; ++i) block(task, rows, s, b, i);
      for (std::int64_t r = 0; r < s.rows; ++r) {
        store_row(task.dq, s.query[r], s.head[r], b.dq + r * padded, rows.scale, s.dim);
      }
    }
    for (std::int64_t j = 0; j < keys; ++j) {
      store_row(task.dk, j, 0, task.dk_sum + j * padded, Fwd::kLn2,
                task.forward.kv.head_dim);  // Q held log2 e
      store_row(task.dv, j, 0, task.dv_sum + j * padded, 1.0f, task.forward.kv.head_dim);
    }
  }
};

}  // namespace inkling::cpu
