// QueryRows: the up to 48 query rows of a task, and all that it keeps of them from block to block. Include
// only from sources of one ISA.
#pragma once

#include "attention/cpu/kernels.h"

namespace inkling::cpu {

template <class V>
struct QueryRows {
  static constexpr int L = V::kLanes;
  static constexpr float kLog2E = 1.44269504088896341f;

  static float minus_infinity() { return -__builtin_inff(); }

  // Everything a task keeps between blocks; rows of its first head come first.
  struct State {
    std::int64_t rows, head_rows, dim, padded;
    std::int64_t *query, *head, *begin, *end;  // (rows): which query and query head, and the keys it sees
    float *q, *scores, *wide_k, *wide_v;
    float *max, *sum, *acc;              // (rows), (rows, L), (rows, Dp) of the current split; sum by lanes
    float *all_max, *all_sum, *all_acc;  // (rows), (rows), (rows, Dp) of the splits before
  };

  static State carve(const ForwardTask& task, std::byte* scratch) {
    State s{};
    s.head_rows = task.row_end - task.row_begin;
    s.rows = task.heads * s.head_rows;
    s.dim = task.kv.head_dim;
    s.padded = task.kv.padded_dim();
    auto* floats = reinterpret_cast<float*>(scratch);
    const auto take = [&](std::int64_t count) {
      float* part = floats;
      floats += (count + 15) / 16 * 16;
      return part;
    };
    s.q = take(kQueryRows * s.dim);
    s.scores = take(kQueryRows * kKeyBlock);
    s.acc = take(kQueryRows * s.padded);
    s.all_acc = take(kQueryRows * s.padded);
    s.wide_k = take(kKeyBlock * s.dim);
    s.wide_v = take(kKeyBlock * s.padded);
    s.sum = take(kQueryRows * L);
    s.max = take(kQueryRows);
    s.all_max = take(kQueryRows);
    s.all_sum = take(kQueryRows);
    s.query = reinterpret_cast<std::int64_t*>(floats);
    s.head = s.query + kQueryRows;
    s.begin = s.head + kQueryRows;
    s.end = s.begin + kQueryRows;
    return s;
  }

  // Which query and head every row is, and what it sees.
  static void place_rows(const ForwardTask& task, const State& s) {
    for (std::int64_t r = 0; r < s.rows;) {
      const std::int64_t head = r / s.head_rows * task.group;
      std::int64_t query = task.row_begin / task.group, member = task.row_begin % task.group;
      for (std::int64_t i = 0; i < s.head_rows; ++i, ++r) {
        const std::int64_t from = query + task.see_from, until = query + task.see_until;
        s.query[r] = query;
        s.head[r] = head + member;
        s.begin[r] = from < 0 ? 0 : from;
        s.end[r] = until < task.keys ? until : task.keys;
        if (++member == task.group) member = 0, ++query;
      }
    }
  }

  // Q in scratch, scaled into base-2 units.
  template <class T>
  static void load_queries(const ForwardTask& task, const State& s) {
    const float scale = task.scale * kLog2E;
    for (std::int64_t r = 0; r < s.rows; ++r) {
      const T* q = static_cast<const T*>(task.q) + s.query[r] * task.q_row + s.head[r] * task.q_head;
      float* out = s.q + r * s.dim;
      std::int64_t d = 0;
      for (; d + L <= s.dim; d += L) V::store(out + d, V::mul(V::load(q + d), V::set1(scale)));
      for (; d < s.dim; ++d) out[d] = static_cast<float>(q[d]) * scale;
    }
  }

  static State start(const ForwardTask& task, std::byte* scratch) {
    const State s = carve(task, scratch);
    place_rows(task, s);
    for (std::int64_t r = 0; r < s.rows; ++r) {
      s.all_max[r] = minus_infinity();
      s.all_sum[r] = 0.0f;
    }
    switch (task.q_dtype) {
      case DType::bf16:
        load_queries<bf16>(task, s);
        break;
      case DType::f16:
        load_queries<f16>(task, s);
        break;
      default:
        load_queries<float>(task, s);
        break;
    }
    return s;
  }

  static std::int64_t low(const State& s, std::int64_t r, std::int64_t base) {
    return s.begin[r] > base ? s.begin[r] - base : 0;
  }
  static std::int64_t high(const State& s, std::int64_t r, std::int64_t base) {
    return s.end[r] < base + kKeyBlock ? s.end[r] - base : kKeyBlock;
  }

  // Rows [first, last) in runs, with the end of what any of a run sees: all in one where they see the same
  // end, else few, so that little is computed beyond a diagonal.
  template <class Body>
  static void for_runs(const State& s, std::int64_t first, std::int64_t last, std::int64_t base,
                       Body&& body) {
    constexpr std::int64_t kRun = 16;
    const std::int64_t step = high(s, first, base) == high(s, last - 1, base) ? kQueryRows : kRun;
    for (std::int64_t row = first; row < last; row += step) {
      const std::int64_t rows = last - row < step ? last - row : step;
      body(row, rows, high(s, row + rows - 1, base));
    }
  }

  static void zero(float* p, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += L) V::store(p + i, V::zero());
  }
};

}  // namespace inkling::cpu
