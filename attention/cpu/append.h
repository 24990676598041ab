// append(): keys and values of one head into its blocks of 64 tokens. Include only from sources of one ISA.
//
//   K[d][t] = k[t][d]    V[t][d] = v[t][d], zero for d in [D, Dp)
//
// K is transposed sixteen tokens at a time by 4 × 4 shuffles into a stage of D × 16 floats (16 KiB at most,
// in L1), whose rows are then narrowed and stored as vectors. A single token (a decode step) is scattered
// directly. Cost: reads and writes 2·count·D elements; about one instruction per element for K. Oracle:
// tests/attention.
#pragma once

#include "attention/cpu/kernels.h"

namespace inkling::cpu {

template <class V>
struct Append {
  static constexpr int L = V::kLanes;
  static constexpr std::int64_t kStage = 16;  // tokens transposed together: a cache line of floats
  typedef float Quad __attribute__((vector_size(16)));

  template <class S>
  static Quad load4(const S* p) {
    return Quad{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                static_cast<float>(p[3])};
  }

  static void store4(float* p, Quad v) { __builtin_memcpy(p, &v, sizeof v); }

  // out[d][t] = k[t][d] for `tokens` tokens, a multiple of 4. Row strides in elements.
  template <class S>
  static void transpose(const S* k, std::ptrdiff_t stride, std::int64_t tokens, std::int64_t dim, float* out,
                        std::ptrdiff_t out_stride) {
    const std::int64_t whole = dim / 4 * 4;
    for (std::int64_t t = 0; t < tokens; t += 4) {
      const S* rows = k + t * stride;
      for (std::int64_t d = 0; d < whole; d += 4) {
        const Quad a = load4(rows + d), b = load4(rows + stride + d);
        const Quad c = load4(rows + 2 * stride + d), e = load4(rows + 3 * stride + d);
        const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                   ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Quad ce_low = __builtin_shufflevector(c, e, 0, 4, 1, 5),
                   ce_high = __builtin_shufflevector(c, e, 2, 6, 3, 7);
        float* to = out + d * out_stride + t;
        store4(to, __builtin_shufflevector(ab_low, ce_low, 0, 1, 4, 5));
        store4(to + out_stride, __builtin_shufflevector(ab_low, ce_low, 2, 3, 6, 7));
        store4(to + 2 * out_stride, __builtin_shufflevector(ab_high, ce_high, 0, 1, 4, 5));
        store4(to + 3 * out_stride, __builtin_shufflevector(ab_high, ce_high, 2, 3, 6, 7));
      }
      for (std::int64_t d = whole; d < dim; ++d) {
        for (int i = 0; i < 4; ++i) out[d * out_stride + t + i] = static_cast<float>(rows[i * stride + d]);
      }
    }
  }

  template <class S, class W>
  static void keys(const S* k, std::ptrdiff_t stride, std::int64_t count, std::int64_t dim, W* panel) {
    alignas(64) float stage[kMaxHeadDim * kStage];
    while (count >= kStage) {
      transpose(k, stride, kStage, dim, stage, kStage);
      for (std::int64_t d = 0; d < dim; ++d) {
        for (int j = 0; j < kStage; j += L)
          V::store(panel + d * kKeyBlock + j, V::load(stage + d * kStage + j));
      }
      k += kStage * stride;
      panel += kStage;
      count -= kStage;
    }
    for (std::int64_t t = 0; t < count; ++t) {
      for (std::int64_t d = 0; d < dim; ++d)
        panel[d * kKeyBlock + t] = W(static_cast<float>(k[t * stride + d]));
    }
  }

  template <class S, class W>
  static void values(const S* v, std::ptrdiff_t stride, std::int64_t count, std::int64_t dim,
                     std::int64_t padded, W* out) {
    for (std::int64_t t = 0; t < count; ++t, v += stride, out += padded) {
      std::int64_t d = 0;
      for (; d + L <= dim; d += L) V::store(out + d, V::load(v + d));
      for (; d < dim; ++d) out[d] = W(static_cast<float>(v[d]));
      for (; d < padded; ++d) out[d] = W(0.0f);
    }
  }

  template <class S, class W>
  static void run_as(const AppendTask& task) {
    const std::int64_t dim = task.kv.head_dim, padded = task.kv.padded_dim();
    for (std::int64_t done = 0; done < task.count;) {
      const std::int64_t position = task.position + done;
      const std::int64_t block = position / kKeyBlock, column = position % kKeyBlock;
      const std::int64_t room = kKeyBlock - column, left = task.count - done,
                         count = left < room ? left : room;
      keys(static_cast<const S*>(task.k.data) + done * task.k.stride, task.k.stride, count, dim,
           reinterpret_cast<W*>(task.kv.k(block)) + column);
      values(static_cast<const S*>(task.v.data) + done * task.v.stride, task.v.stride, count, dim, padded,
             reinterpret_cast<W*>(task.kv.v(block)) + column * padded);
      done += count;
    }
  }

  static void run(const AppendTask& task) {
    const bool wide = task.k.dtype == DType::f32;
    switch (task.kv.dtype) {
      case DType::bf16:
        return wide ? run_as<float, bf16>(task) : run_as<bf16, bf16>(task);
      case DType::f16:
        return wide ? run_as<float, f16>(task) : run_as<f16, f16>(task);
      default:
        return run_as<float, float>(task);
    }
  }
};

}  // namespace inkling::cpu
