// 8-lane vectors on AVX2 + FMA + F16C. The vocabulary is that of simd/avx512.h.
// Include only from sources compiled for this ISA.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/dtype.h"

namespace inkling::simd {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kPanelVectors = 2;  // panels of 16 columns
  static constexpr int kTileRows = 6;      // 6 × 2 accumulators + 2 weights + 1 activation of 16 registers

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const bf16* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  static F load(const f16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(bf16* p, F v) {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store(f16* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_first(float* p, F v, int n) { _mm256_maskstore_ps(p, first(n), v); }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static F where_positive(F x, F v) { return _mm256_and_ps(_mm256_cmp_ps(x, zero(), _CMP_GT_OQ), v); }
  static F copysign(F magnitude, F sign) {
    const F bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_and_ps(bit, sign), _mm256_andnot_ps(bit, magnitude));
  }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // Two factors, since 2^128 is none: e^89 is infinite.
  static F scale2_from(F least, F x, F a, F n) {
    const F keep = _mm256_cmp_ps(x, least, _CMP_NLT_UQ);
    a = _mm256_and_ps(keep, a);  // 0 · 2^0 elsewhere
    const __m256i k = _mm256_cvtps_epi32(_mm256_and_ps(keep, n));
    const __m256i half = _mm256_srai_epi32(k, 1);
    const auto power = [](__m256i e) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(_mm256_sub_epi32(k, half)));
  }
  static F select_upto(F a, F b, std::int64_t base, std::int64_t limit) {
    const std::int64_t n = limit - base + 1;
    const __m256i keep = first(n < 0 ? 0 : n > 8 ? 8 : static_cast<int>(n));
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(keep));
  }
  static float reduce_add(F a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float reduce_max(F a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  static void store_i8(std::int8_t* p, F v) {
    const __m256i i = _mm256_cvtps_epi32(v);
    const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(w, w));
  }

  using I = __m256i;
  static I izero() { return _mm256_setzero_si256(); }
  static I iset1(std::int32_t v) { return _mm256_set1_epi32(v); }
  static I load_u8(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static I low_nibbles(I v) { return _mm256_and_si256(v, _mm256_set1_epi8(0xf)); }
  static I high_nibbles(I v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I dot_u4(I acc, I weights, I activations) {
    const I pairs = _mm256_maddubs_epi16(weights, activations);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static I dot_u8(I acc, I weights, I activations) {
    const I mask = _mm256_set1_epi16(0xff);
    const I even = _mm256_madd_epi16(_mm256_and_si256(weights, mask),
                                     _mm256_srai_epi16(_mm256_slli_epi16(activations, 8), 8));
    const I odd = _mm256_madd_epi16(_mm256_srli_epi16(weights, 8), _mm256_srai_epi16(activations, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
  }

  static void transpose(F (&r)[8]) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F low = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
      r[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
      r[c] = low;
    }
  }

  static I counters() {
    return _mm256_setr_epi32(0, 0, 2, 0, 1, 0, 3, 0);
  }
  static I iadd(I a, I b) {
    return _mm256_add_epi32(a, b);
  }
  static I ixor(I a, I b) {
    return _mm256_xor_si256(a, b);
  }
  static I mul_wide(I a, I b) {
    return _mm256_mul_epu32(a, b);
  }
  static I high_half(I a) {
    return _mm256_srli_epi64(a, 32);
  }
  static void interleave(I w0, I w1, I w2, I w3, I& first_half, I& second_half) {
    const I p01 = _mm256_blend_epi32(w0, _mm256_slli_epi64(w1, 32), 0xaa);
    const I p23 = _mm256_blend_epi32(w2, _mm256_slli_epi64(w3, 32), 0xaa);
    first_half = _mm256_unpacklo_epi64(p01, p23);
    second_half = _mm256_unpackhi_epi64(p01, p23);
  }
  static F keep_from(F x, I words, I threshold) {
    const I keep = _mm256_cmpeq_epi32(_mm256_max_epu32(words, threshold), words);
    return _mm256_and_ps(_mm256_castsi256_ps(keep), x);
  }

 private:
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace inkling::simd
