// 4-lane vectors in the compiler's own vector types: SSE2 on x86-64, NEON on AArch64, plain code elsewhere.
// The vocabulary is that of simd/avx512.h. fma() rounds twice here.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/dtype.h"

namespace inkling::simd {

struct Portable {
  typedef float F __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kPanelVectors = 4;  // panels of 16 columns
  static constexpr int kTileRows = 2;

  static F zero() { return F{}; }
  static F set1(float v) { return F{v, v, v, v}; }
  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static F load(const bf16* p) { return F{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
  static F load(const f16* p) { return F{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
  static F load_first(const float* p, int n) {
    F v{};
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  template <class T>
  static void store(T* p, F v) {
    for (int i = 0; i < kLanes; ++i) p[i] = T(v[i]);
  }
  static void store_first(float* p, F v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F max(F a, F b) { return a > b ? a : b; }  // b when either is NaN, as on x86
  static F min(F a, F b) { return a < b ? a : b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F abs(F a) {
    return each(a, [](float x) { return std::fabs(x); });
  }
  static F sqrt(F a) {
    return each(a, [](float x) { return std::sqrt(x); });
  }
  static F where_positive(F x, F v) {
    for (int i = 0; i < kLanes; ++i) v[i] = x[i] > 0.0f ? v[i] : 0.0f;
    return v;
  }
  static F copysign(F magnitude, F sign) {
    F v{};
    for (int i = 0; i < kLanes; ++i) v[i] = std::copysign(magnitude[i], sign[i]);
    return v;
  }
  static F round(F a) {
    return each(a, [](float x) { return std::nearbyint(x); });
  }
  static F scale2_from(F least, F x, F a, F n) {
    F v{};
    for (int i = 0; i < kLanes; ++i) {
      if (!(x[i] < least[i])) v[i] = x[i] == x[i] ? std::ldexp(a[i], static_cast<int>(n[i])) : x[i];
    }
    return v;
  }
  static F select_upto(F a, F b, std::int64_t base, std::int64_t limit) {
    F v{};
    for (int i = 0; i < kLanes; ++i) v[i] = base + i <= limit ? a[i] : b[i];
    return v;
  }
  static float reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float reduce_max(F a) { return std::fmax(std::fmax(a[0], a[2]), std::fmax(a[1], a[3])); }
  static void store_i8(std::int8_t* p, F v) {
    for (int i = 0; i < kLanes; ++i) {
      p[i] = static_cast<std::int8_t>(std::fmin(std::fmax(std::nearbyint(v[i]), -128.0f), 127.0f));
    }
  }

  typedef std::int32_t I __attribute__((vector_size(16)));
  static I izero() { return I{}; }
  static I iset1(std::int32_t v) { return I{v, v, v, v}; }
  static I load_u8(const std::uint8_t* p) {
    I v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static I low_nibbles(I v) { return v & 0x0f0f0f0f; }
  static I high_nibbles(I v) { return (v >> 4) & 0x0f0f0f0f; }
  static F to_float(I v) { return __builtin_convertvector(v, F); }
  static I dot_u8(I acc, I weights, I activations) {
    for (int i = 0; i < kLanes; ++i) {
      for (int b = 0; b < 32; b += 8) {
        acc[i] += ((weights[i] >> b) & 0xff) * static_cast<std::int8_t>(activations[i] >> b);
      }
    }
    return acc;
  }
  static I dot_u4(I acc, I weights, I activations) { return dot_u8(acc, weights, activations); }

  static void transpose(F (&r)[4]) {
    const F a = r[0], b = r[1], c = r[2], d = r[3];
    for (int i = 0; i < kLanes; ++i) r[i] = F{a[i], b[i], c[i], d[i]};
  }

  static I counters() { return I{0, 0, 1, 0}; }
  static I iadd(I a, I b) { return reinterpret_cast<I>(reinterpret_cast<U>(a) + reinterpret_cast<U>(b)); }
  static I ixor(I a, I b) { return a ^ b; }
  static I mul_wide(I a, I b) { return reinterpret_cast<I>((wide(a) & kLow) * (wide(b) & kLow)); }
  static I high_half(I a) { return reinterpret_cast<I>(wide(a) >> 32); }
  static void interleave(I w0, I w1, I w2, I w3, I& first_half, I& second_half) {
    first_half = I{w0[0], w1[0], w2[0], w3[0]};
    second_half = I{w0[2], w1[2], w2[2], w3[2]};
  }
  static F keep_from(F x, I words, I threshold) {
    for (int i = 0; i < kLanes; ++i) {
      if (static_cast<std::uint32_t>(words[i]) < static_cast<std::uint32_t>(threshold[i])) x[i] = 0.0f;
    }
    return x;
  }

 private:
  typedef std::uint32_t U __attribute__((vector_size(16)));
  typedef std::uint64_t U64 __attribute__((vector_size(16)));
  static constexpr U64 kLow = {0xffffffff, 0xffffffff};
  static U64 wide(I a) { return reinterpret_cast<U64>(a); }
  template <class Fn>
  static F each(F a, Fn fn) {
    for (int i = 0; i < kLanes; ++i) a[i] = fn(a[i]);
    return a;
  }
};

}  // namespace inkling::simd
