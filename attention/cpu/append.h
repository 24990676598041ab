// append(): keys and values of one head into its blocks of 64 tokens. Include only from sources of one ISA.
//
//   K[d][t] = k[t][d]    V[t][d] = v[t][d], zero for d in [D, Dp)
//
// K is transposed in registers, as many tokens at a time as a vector has lanes; a single token (a decode
// step) is scattered. Cost: reads and writes 2·count·D elements; two instructions per vector of V, six per
// vector of K. Oracle: tests/attention.
#pragma once

#include "attention/cpu/packed_rows.h"

namespace inkling::cpu {

template <class V>
struct Append {
  template <class S>
  using Rows = typename PackedRows<V>::template Rows<S>;

  template <class S, class W>
  static void run_as(const AppendTask& task) {
    const std::int64_t dim = task.kv.head_dim, padded = task.kv.padded_dim();
    for (std::int64_t done = 0; done < task.count;) {
      const std::int64_t position = task.position + done;
      const std::int64_t block = position / kKeyBlock, column = position % kKeyBlock;
      const std::int64_t room = kKeyBlock - column, left = task.count - done,
                         count = left < room ? left : room;
      const Rows<S> k{static_cast<const S*>(task.k.data) + done * task.k.stride, task.k.stride};
      const Rows<S> v{static_cast<const S*>(task.v.data) + done * task.v.stride, task.v.stride};
      PackedRows<V>::keys(k, v, count, left, dim, reinterpret_cast<W*>(task.kv.k(block)) + column);
      PackedRows<V>::values(v, count, dim, padded, reinterpret_cast<W*>(task.kv.v(block)) + column * padded);
      done += count;
    }
  }

  static void narrow(const AppendTask& task) {
    switch (task.kv.dtype) {
      case DType::bf16:
        return run_as<float, bf16>(task);
      case DType::f16:
        return run_as<float, f16>(task);
      default:
        return run_as<float, float>(task);
    }
  }

  static void run(const AppendTask& task) {
    switch (task.k.dtype) {
      case DType::bf16:
        return run_as<bf16, float>(task);
      case DType::f16:
        return run_as<f16, float>(task);
      default:
        return narrow(task);
    }
  }
};

}  // namespace inkling::cpu
