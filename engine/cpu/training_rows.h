// Kernels of the training ops over one row or one run of elements. Each reduces in one fixed order:
// lane-wise, then across lanes. Include only from sources of one ISA.
// Longer than a header: it is a source, compiled once per ISA.
#pragma once

#include <cmath>
#include <cstring>

#include "engine/cpu/rows.h"
#include "engine/philox.h"

namespace inkling::cpu {

template <class V>
struct TrainingKernels {
  using F = typename V::F;
  using I = typename V::I;
  using Row = RowKernels<V>;
  static constexpr int L = V::kLanes;

  // With y = (x − mean)/σ and g = dout · weight (Ba et al. 2016, differentiated):
  //   dx += (g − mean(g) − y · mean(g · y)) / σ
  // Three passes over rows that sit in L1. The sums have K/L terms a lane: error ~ (K/L)·2^-24 relative to
  // Σ|·|.
  static void layer_norm_backward(const LayerNormBackwardRow& row) {
    const float *x = row.x, *dout = row.dout, *weight = row.weight;
    const std::int64_t n = row.n;
    F sums = V::zero();
    Row::each(n, [&](std::int64_t i, auto load, auto) { sums = V::add(sums, load(x + i)); });
    const auto count = static_cast<float>(n);
    const F mean = V::set1(V::reduce_add(sums) / count);
    F squares = V::zero(), g_sum = V::zero(), gd_sum = V::zero();
    const auto add = [&](F d, F g) {
      squares = V::fma(d, d, squares);
      g_sum = V::add(g_sum, g);
      gd_sum = V::fma(g, d, gd_sum);
    };
    std::int64_t i = 0;
    for (; i + L <= n; i += L) {
      add(V::sub(V::load(x + i), mean), V::mul(V::load(dout + i), V::load(weight + i)));
    }
    if (i < n) {  // lanes past the row: d must be 0 there, not −mean
      const int rest = static_cast<int>(n - i);
      add(V::select_upto(V::sub(V::load_first(x + i, rest), mean), V::zero(), 0, rest - 1),
          V::mul(V::load_first(dout + i, rest), V::load_first(weight + i, rest)));
    }
    const float inverse = 1.0f / std::sqrt(V::reduce_add(squares) / count + row.epsilon);
    const F inverse_v = V::set1(inverse), g_mean = V::set1(V::reduce_add(g_sum) / count);
    const F gy_mean = V::set1(V::reduce_add(gd_sum) * inverse / count);
    Row::each(n, [&](std::int64_t j, auto load, auto store) {
      const F d = load(dout + j);
      const F y = V::mul(V::sub(load(x + j), mean), inverse_v);
      const F g = V::fma(V::sub(V::zero(), y), gy_mean, V::sub(V::mul(d, load(weight + j)), g_mean));
      store(row.dx + j, V::fma(g, inverse_v, load(row.dx + j)));
      store(row.dweight + j, V::fma(d, y, load(row.dweight + j)));
      store(row.dbias + j, V::add(d, load(row.dbias + j)));
    });
  }

  struct Pair {
    F value, slope;
  };

  // u as in simd::gelu_tanh, e = exp(−2|u|), s = 1/(1 + exp(−2u)) = e/(1 + e) + (x > 0 ? (1 − e)/(1 + e) :
  // 0):
  //   y = x · s,  y' = s + x · e/(1 + e)² · 2u'
  // Both keep their relative accuracy far out on either side. Beyond |x| = 16 s is 0 or 1 in f32, and y' too.
  static Pair gelu_tanh(F x) {
    constexpr float kRoot = 0.7978845608028654f;  // √(2/π)
    const F near = V::max(V::set1(-16.0f), V::min(V::set1(16.0f), x));
    const F squared = V::mul(near, near), one = V::set1(1.0f);
    const F u2 =
        V::mul(V::mul(V::abs(near), V::set1(-2.0f * kRoot)), V::fma(squared, V::set1(0.044715f), one));
    const F e = simd::exp<V>(u2);
    const F inverse = V::div(one, V::add(one, e));
    const F tail = V::mul(e, inverse);
    const F s = V::add(tail, V::where_positive(near, V::mul(V::sub(one, e), inverse)));
    const F steep = V::mul(V::mul(near, V::set1(2.0f * kRoot)), V::fma(squared, V::set1(3 * 0.044715f), one));
    return {V::mul(x, s), V::fma(V::mul(tail, inverse), steep, s)};
  }

  // y = x Φ(x), y' = Φ(x) + x φ(x). Φ as in simd::erf, whose e^(−x²/2) is that of φ.
  static Pair gelu_erf(F x) {
    const F near = V::max(V::set1(-16.0f), V::min(V::set1(16.0f), x));
    const F e = simd::exp<V>(V::mul(V::mul(near, near), V::set1(-0.5f)));
    const F erf = simd::erf_from<V>(V::mul(near, V::set1(0.70710678118654752f)), e);
    const F area = V::fma(erf, V::set1(0.5f), V::set1(0.5f));
    return {V::mul(x, area), V::fma(V::mul(near, V::set1(0.3989422804014327f)), e, area)};
  }

  static void activate_backward(const float* x, float* dx, float* activated, std::int64_t n,
                                Activation activation) {
    const auto map = [&](auto&& fn) {
      Row::each(n, [&](std::int64_t i, auto load, auto store) {
        const Pair y = fn(load(x + i));
        store(dx + i, V::mul(y.slope, load(dx + i)));
        if (activated != nullptr) store(activated + i, y.value);
      });
    };
    switch (activation) {
      case Activation::none:
        if (activated != nullptr) std::memcpy(activated, x, static_cast<std::size_t>(n) * sizeof(float));
        return;
      case Activation::gelu_tanh:
        return map([](F v) { return gelu_tanh(v); });
      case Activation::gelu_erf:
        return map([](F v) { return gelu_erf(v); });
      case Activation::relu:
        return map([](F v) { return Pair{simd::relu<V>(v), V::where_positive(v, V::set1(1.0f))}; });
    }
  }

  // The loss of one row, and its gradient in place unless scale is 0. Σe^(x − max) runs in f32 lanes, as in
  // log_softmax; (max − x[target]) is taken before the logarithm is added, so that large logits cancel first.
  static float cross_entropy(float* x, std::int64_t n, std::int64_t target, float scale) {
    if (target < 0) {
      if (scale != 0.0f) std::memset(x, 0, static_cast<std::size_t>(n) * sizeof(float));
      return 0.0f;
    }
    const float top = Row::row_max(x, n);
    const F top_v = V::set1(top);
    const bool keep = scale != 0.0f;
    const float ahead = top - x[target];
    F sums = V::zero();
    std::int64_t i = 0;
    for (; i + L <= n; i += L) {
      const F e = simd::exp<V>(V::sub(V::load(x + i), top_v));
      sums = V::add(sums, e);
      if (keep) V::store(x + i, e);
    }
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      const F e = simd::exp<V>(V::sub(V::load_first(x + i, rest), top_v));
      sums = V::add(sums, V::select_upto(e, V::zero(), 0, rest - 1));
      if (keep) V::store_first(x + i, e, rest);
    }
    const float total = V::reduce_add(sums);
    if (keep) {
      const F factor = V::set1(scale / total);
      Row::map(x, n, [&](F e) { return V::mul(e, factor); });
      x[target] -= scale;
    }
    return ahead + std::log(total);
  }

  // Eight chains, so that the compiler keeps them in vectors of doubles.
  static double sum_of_squares(const float* x, std::int64_t n) {
    double sums[8] = {};
    std::int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
    }
    for (int j = 0; i < n; ++i, ++j) sums[j] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  }

  // Rows in order, a run of them at a time: the sum of a run stays in registers, and rounds less than one
  // long chain would: by (32 + rows/32) · 2^-24 at most.
  static void add_column_sums(const float* x, std::ptrdiff_t stride, std::int64_t rows, std::int64_t columns,
                              float* sums) {
    constexpr std::int64_t kRun = 32;
    for (std::int64_t begin = 0; begin < rows; begin += kRun) {
      const std::int64_t end = begin + kRun < rows ? begin + kRun : rows;
      std::int64_t c = 0;
      for (; c + 4 * L <= columns; c += 4 * L) {
        F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
        for (std::int64_t r = begin; r < end; ++r) {
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) sum[j] = V::add(sum[j], V::load(x + r * stride + c + j * L));
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) V::store(sums + c + j * L, V::add(V::load(sums + c + j * L), sum[j]));
      }
      Row::each(columns - c, [&](std::int64_t i, auto load, auto store) {
        F sum = V::zero();
        for (std::int64_t r = begin; r < end; ++r) sum = V::add(sum, load(x + r * stride + c + i));
        store(sums + c + i, V::add(load(sums + c + i), sum));
      });
    }
  }

  // Bound by memory: 28 bytes an element.
  static void adamw(const AdamWStep& s, float* parameter, const float* gradient, float* m, float* v,
                    std::int64_t n) {
    const F decay = V::set1(s.decay), to_m = V::set1(s.to_m), beta2 = V::set1(s.beta2),
            to_v = V::set1(s.to_v);
    const F gradient_scale = V::set1(s.gradient_scale), root = V::set1(s.inverse_root),
            epsilon = V::set1(s.epsilon), rate = V::set1(-s.rate);
    Row::each(n, [&](std::int64_t i, auto load, auto store) {
      const F g = V::mul(load(gradient + i), gradient_scale);
      const F m0 = load(m + i);
      const F m1 = V::fma(to_m, V::sub(g, m0), m0);
      const F v1 = V::fma(V::mul(to_v, g), g, V::mul(beta2, load(v + i)));
      store(m + i, m1);
      store(v + i, v1);
      const F divisor = V::fma(V::sqrt(v1), root, epsilon);
      // Lanes past the end divide 0 by epsilon and are not stored.
      store(parameter + i, V::fma(rate, V::div(m1, divisor), V::mul(load(parameter + i), decay)));
    });
  }

  // Philox-4x32-10 with a counter in every 64-bit lane: 6 instructions a round for 2·L elements.
  static void dropout(const DropoutRow& row) {
    const I threshold = V::iset1(static_cast<std::int32_t>(row.threshold));
    const F scale = V::set1(row.scale);
    I block = V::counters();
    const auto draw = [&](I& first, I& second) {
      I c0 = block, c1 = word(row.counter[1]), c2 = word(row.counter[2]), c3 = word(row.counter[3]);
      auto k0 = static_cast<std::uint32_t>(row.seed), k1 = static_cast<std::uint32_t>(row.seed >> 32);
#pragma GCC unroll 10
      for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        const I a = V::mul_wide(c0, word(kPhiloxM0)), b = V::mul_wide(c2, word(kPhiloxM1));
        c0 = V::ixor(V::ixor(V::high_half(b), c1), word(k0));
        c1 = b;
        c2 = V::ixor(V::ixor(V::high_half(a), c3), word(k1));
        c3 = a;
      }
      V::interleave(c0, c1, c2, c3, first, second);
      block = V::iadd(block, V::iset1(L / 2));
    };
    const auto finish = [&](F x, F residual, I words) {
      return V::add(V::keep_from(V::mul(x, scale), words, threshold), residual);
    };
    const auto whole = [&](std::int64_t i, I words) {
      const F residual = row.residual != nullptr ? V::load(row.residual + i) : V::zero();
      V::store(row.x + i, finish(V::load(row.from + i), residual, words));
    };
    std::int64_t i = 0;
    I first, second;
    for (; i + 2 * L <= row.n; i += 2 * L) {
      draw(first, second);
      whole(i, first);
      whole(i + L, second);
    }
    if (i == row.n) return;
    draw(first, second);
    for (; i < row.n; i += L, first = second) {
      const int rest = row.n - i < L ? static_cast<int>(row.n - i) : L;
      const F residual = row.residual != nullptr ? V::load_first(row.residual + i, rest) : V::zero();
      V::store_first(row.x + i, finish(V::load_first(row.from + i, rest), residual, first), rest);
    }
  }

 private:
  static I word(std::uint32_t w) {
    return V::iset1(static_cast<std::int32_t>(w));
  }
};

}  // namespace inkling::cpu
