// Packed keys and values on their way into blocks. Include only from sources of one ISA.
//
// For a few query rows a block is taken when the walk comes to it: its keys are transposed into a stage that
// stays in L1, its values are read where they lie, so that memory is read once and nothing is written to it.
// The rows of a head are short runs (256 bytes at D = 64, f32) far apart, which the hardware's prefetchers do
// not follow: the next block is asked for while this one is transposed, a few rows at a time, for a
// core waits when too much is on its way. Into L2, for such strides fall on a few sets of L1. Cost: bound by
// reading; six instructions per vector of K. Measured: attention/README.md. Oracle: tests/attention.
#pragma once

#include "attention/cpu/kernels.h"
#include "engine/cpu/transpose.h"

namespace inkling::cpu {

template <class V>
struct PackedRows {
  static constexpr int L = V::kLanes;

  /// Rows of one head in a packed tensor of S.
  template <class S>
  struct Rows {
    const S* data;
    std::ptrdiff_t stride;

    void ask_for(std::int64_t row, std::int64_t dim) const {
      const auto* from = reinterpret_cast<const char*>(data + row * stride);
      for (std::int64_t at = 0; at < dim * static_cast<std::int64_t>(sizeof(S)); at += 64)
        __builtin_prefetch(from + at, 0, 2);
    }
  };

  /// panel[d][t] = k[t][d] for t < count ≤ 64. Meanwhile the next 64 rows of k and v come nearer, of `left`.
  template <class S, class W>
  static void keys(const Rows<S>& k, const Rows<S>& v, std::int64_t count, std::int64_t left,
                   std::int64_t dim, W* panel) {
    constexpr auto kColumns =
        static_cast<std::int64_t>(128 / sizeof(S));             // two lines of a row, whole squares
    const std::int64_t share = (L * kColumns + dim - 1) / dim;  // rows asked for with as many columns
    for (std::int64_t t = 0, next = kKeyBlock; t < count; t += L) {
      const std::int64_t rows = count - t < L ? count - t : L;
      for (std::int64_t d = 0; d < dim; d += kColumns) {
        for (std::int64_t end = next + share; next < end && next < left; ++next) {
          k.ask_for(next, dim);
          v.ask_for(next, dim);
        }
        transpose<V>(k.data + t * k.stride + d, k.stride, rows, dim - d < kColumns ? dim - d : kColumns,
                     panel + d * kKeyBlock + t, kKeyBlock);
      }
    }
  }

  /// out[t][d] = v[t][d] for t < count, zero for d in [D, Dp).
  template <class S, class W>
  static void values(const Rows<S>& v, std::int64_t count, std::int64_t dim, std::int64_t padded, W* out) {
    const S* row = v.data;
    for (std::int64_t t = 0; t < count; ++t, row += v.stride, out += padded) {
      std::int64_t d = 0;
      for (; d + L <= dim; d += L) V::store(out + d, V::load(row + d));
      for (; d < dim; ++d) out[d] = W(static_cast<float>(row[d]));
      for (; d < padded; ++d) out[d] = W(0.0f);
    }
  }
};

}  // namespace inkling::cpu
