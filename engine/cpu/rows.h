// Kernels over one row: LayerNorm, softmax, activations, and the preparation of activations for a product.
// Each reduces in one fixed order: lane-wise over the row, then across lanes. Include only from sources of
// one ISA.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "engine/cpu/kernels.h"
#include "engine/cpu/simd/math.h"

namespace inkling::cpu {

template <class V>
struct RowKernels {
  using F = typename V::F;
  static constexpr int L = V::kLanes;

  /// Calls body(i, load, store) for each vector of the row; the last may be partial.
  template <class Body>
  static void each(std::int64_t n, Body&& body) {
    std::int64_t i = 0;
    for (; i + L <= n; i += L) {
      body(
          i, [](const float* p) { return V::load(p); }, [](float* p, F v) { V::store(p, v); });
    }
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      body(
          i, [rest](const float* p) { return V::load_first(p, rest); },
          [rest](float* p, F v) { V::store_first(p, v, rest); });
    }
  }

  // Two passes over a row that sits in L1: mean, then the variance about it. f32, error ~ K·2^-24 relative.
  static void layer_norm(const float* x, std::int64_t n, const LayerNorm& norm, float* out) {
    F sums = V::zero();
    each(n, [&](std::int64_t i, auto load, auto) { sums = V::add(sums, load(x + i)); });
    const float mean = V::reduce_add(sums) / static_cast<float>(n);
    const F mean_v = V::set1(mean);
    F squares = V::zero();
    std::int64_t i = 0;
    for (; i + L <= n; i += L) {
      const F d = V::sub(V::load(x + i), mean_v);
      squares = V::fma(d, d, squares);
    }
    float square = V::reduce_add(squares);
    for (; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const F inverse = V::set1(1.0f / std::sqrt(square / static_cast<float>(n) + norm.epsilon));
    each(n, [&](std::int64_t j, auto load, auto store) {
      const F y = V::mul(V::sub(load(x + j), mean_v), inverse);
      const F b = norm.bias != nullptr ? load(norm.bias + j) : V::zero();
      store(out + j, V::fma(y, load(norm.weight + j), b));
    });
  }

  static float row_max(const float* x, std::int64_t n) {
    F top = V::set1(-std::numeric_limits<float>::infinity());
    std::int64_t i = 0;
    for (; i + L <= n; i += L) top = V::max(top, V::load(x + i));
    float best = V::reduce_max(top);
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    return best;
  }

  static void softmax(float* x, std::int64_t n) {
    const float top = row_max(x, n);
    if (top == -std::numeric_limits<float>::infinity()) {
      std::memset(x, 0, static_cast<std::size_t>(n) * sizeof(float));
      return;
    }
    const F top_v = V::set1(top);
    each(n, [&](std::int64_t i, auto load, auto store) {
      store(x + i, simd::exp<V>(V::sub(load(x + i), top_v)));
    });
    F sums = V::zero();
    each(n, [&](std::int64_t i, auto load, auto) { sums = V::add(sums, load(x + i)); });
    const F inverse = V::set1(1.0f / V::reduce_add(sums));
    each(n, [&](std::int64_t i, auto load, auto store) { store(x + i, V::mul(load(x + i), inverse)); });
  }

  // The sum runs in f32 lanes of at most n/L terms each: error ~ (n/L)·2^-24, 2e-4 at worst for V = 50257 and
  // in practice 1e-6, since terms are positive and of random rounding.
  static void log_softmax(float* x, std::int64_t n) {
    const float top = row_max(x, n);
    const F top_v = V::set1(top);
    F sums = V::zero();
    std::int64_t i = 0;
    for (; i + L <= n; i += L) sums = V::add(sums, simd::exp<V>(V::sub(V::load(x + i), top_v)));
    float total = V::reduce_add(sums);
    for (; i < n; ++i) total += std::exp(x[i] - top);
    const F shift = V::set1(top + std::log(total));
    each(n, [&](std::int64_t j, auto load, auto store) { store(x + j, V::sub(load(x + j), shift)); });
  }

  template <class Fn>
  static void map(float* x, std::int64_t n, Fn&& fn) {
    each(n, [&](std::int64_t i, auto load, auto store) { store(x + i, fn(load(x + i))); });
  }

  static void activate(float* x, std::int64_t n, Activation activation) {
    switch (activation) {
      case Activation::none:
        return;
      case Activation::gelu_tanh:
        return map(x, n, [](F v) { return simd::gelu_tanh<V>(v); });
      case Activation::gelu_erf:
        return map(x, n, [](F v) { return simd::gelu_erf<V>(v); });
      case Activation::relu:
        return map(x, n, [](F v) { return simd::relu<V>(v); });
    }
  }

  static void add_row(const float* a, float* inout, std::int64_t n) {
    each(n, [&](std::int64_t i, auto load, auto store) {
      store(inout + i, V::add(load(a + i), load(inout + i)));
    });
  }

  static void prepare(InputKind kind, const PrepareRow& row) {
    const float* x = row.x;
    if (row.norm.weight != nullptr) {
      float* normed = kind == InputKind::f32 ? static_cast<float*>(row.out) : row.normed;
      layer_norm(row.x, row.k, row.norm, normed);
      x = normed;
    } else if (kind == InputKind::f32) {
      std::memcpy(row.out, row.x, static_cast<std::size_t>(row.k) * sizeof(float));
    }
    if (kind == InputKind::bf16) to_bf16(x, row);
    if (kind == InputKind::quantised) quantise(x, row);
  }

  static void to_bf16(const float* x, const PrepareRow& row) {
    auto* out = static_cast<bf16*>(row.out);
    std::int64_t i = 0;
    for (; i + L <= row.k; i += L) V::store(out + i, V::load(x + i));
    for (; i < row.k; ++i) out[i] = bf16(x[i]);
    for (; i < row.k_padded; ++i) out[i] = bf16(0.0f);
  }

  // Symmetric signed bytes: q = round(x · 127 / max|x|), one scale per group of the row. A group with NaN or
  // ±inf has the scale NaN, or a broken model would give numbers: `broken` is Σ 0·x, for max() drops a NaN.
  static void quantise(const float* x, const PrepareRow& row) {
    auto* out = static_cast<std::int8_t*>(row.out);
    std::int64_t g = 0;
    for (std::int64_t begin = 0; begin < row.k; begin += row.group, ++g) {
      const std::int64_t n = row.k - begin < row.group ? row.k - begin : row.group;
      F top = V::zero(), broken = V::zero();
      each(n, [&](std::int64_t i, auto load, auto) {
        const F v = load(x + begin + i);
        top = V::max(top, V::abs(v));
        broken = V::fma(v, V::zero(), broken);
      });
      const float scale = V::reduce_max(top) / 127.0f + V::reduce_add(broken);
      const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
      const F inverse_v = V::set1(inverse);
      std::int64_t i = 0;
      for (; i + L <= n; i += L) V::store_i8(out + begin + i, V::mul(V::load(x + begin + i), inverse_v));
      if (i < n) {
        std::int8_t tail[L];
        V::store_i8(tail, V::mul(V::load_first(x + begin + i, static_cast<int>(n - i)), inverse_v));
        std::memcpy(out + begin + i, tail, static_cast<std::size_t>(n - i));
      }
      std::int32_t sum = 0;
      for (std::int64_t j = 0; j < n; ++j) sum += out[begin + j];
      row.scale[g] = scale;
      row.sum[g] = sum;
    }
    for (std::int64_t i = row.k; i < row.k_padded; ++i) out[i] = 0;
  }
};

}  // namespace inkling::cpu
