// 16-lane vectors on AVX-512: the names that every ISA has, see engine/README.md.
// Include only from sources compiled for this ISA.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "engine/dtype.h"

namespace inkling::simd {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kPanelVectors = 4;  // a weight panel is 64 columns: four accumulator chains at M = 1
  static constexpr int kTileRows = 6;      // 6 × 4 accumulators + 4 weights + 1 activation of 32 registers

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const bf16* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
  static F load(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(bf16* p, F v) {
    // Round to nearest even by integers: the same bits with and without AVX512_BF16, subnormals kept.
    const __m512i u = _mm512_castps_si512(v);
    const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
  }
  static void store(f16* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_first(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  /// Lanes where x > 0 keep v, the others are 0.
  static F where_positive(F x, F v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ), v);
  }
  static F copysign(F magnitude, F sign) {
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(magnitude), _mm512_castps_si512(sign),
                                  _mm512_set1_epi32(static_cast<int>(0x80000000u)), 0xd8));
  }
  /// Rounds to the nearest integer, ties to even.
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  /// a × 2^n for integral n where x ≥ least or x is NaN, and 0 elsewhere, whatever a and n are: no result is
  /// subnormal on the way, which costs Intel's cores more than all the rest of an exponential.
  static F scale2_from(F least, F x, F a, F n) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), a, n);
  }
  /// Lanes i with i + base ≤ limit keep a, the others take b.
  static F select_upto(F a, F b, std::int64_t base, std::int64_t limit) {
    const std::int64_t n = limit - base + 1;
    return _mm512_mask_blend_ps(first(n < 0 ? 0 : n > 16 ? 16 : static_cast<int>(n)), b, a);
  }
  static float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

  /// Rounded and saturated to signed bytes.
  static void store_i8(std::int8_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }

  // 8-bit dot products: four unsigned weights times four signed activations into each 32-bit lane.
  using I = __m512i;
  static I izero() { return _mm512_setzero_si512(); }
  static I iset1(std::int32_t v) { return _mm512_set1_epi32(v); }
  static I load_u8(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static I low_nibbles(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(0xf)); }
  static I high_nibbles(I v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  /// weights are at most 15: the 16-bit pair sums of vpmaddubsw cannot saturate.
  static I dot_u4(I acc, I weights, I activations) {
    const I pairs = _mm512_maddubs_epi16(weights, activations);
    return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
  /// weights up to 255 would saturate vpmaddubsw: even and odd bytes are widened and summed apart.
  static I dot_u8(I acc, I weights, I activations) {
    const I mask = _mm512_set1_epi16(0xff);
    const I even = _mm512_madd_epi16(_mm512_and_si512(weights, mask),
                                     _mm512_srai_epi16(_mm512_slli_epi16(activations, 8), 8));
    const I odd = _mm512_madd_epi16(_mm512_srli_epi16(weights, 8), _mm512_srai_epi16(activations, 8));
    return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
  }

  /// 16 × 16: pairs, fours, then quarters of vectors.
  static void transpose(F (&r)[16]) {
    F t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    const auto low = [](F a, F b) {
      return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
    const auto high = [](F a, F b) {
      return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
    };
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = low(t[i], t[i + 2]);
      r[i + 1] = high(t[i], t[i + 2]);
      r[i + 2] = low(t[i + 1], t[i + 3]);
      r[i + 3] = high(t[i + 1], t[i + 3]);
    }
    // Quarter q of r[4g + c] now holds column 4q + c of rows 4g to 4g + 3.
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F even0 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
      const F even1 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
      const F odd0 = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
      const F odd1 = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
      t[c] = _mm512_shuffle_f32x4(even0, even1, 0x88);
      t[4 + c] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
      t[8 + c] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
      t[12 + c] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }

  // Philox: one counter in each 64-bit lane, its words in the lane's low half; what the high half holds is
  // never looked at.
  /// 0, 1, 2, … in the order in which interleave() wants the counters.
  static I counters() {
    return _mm512_setr_epi32(0, 0, 4, 0, 1, 0, 5, 0, 2, 0, 6, 0, 3, 0, 7, 0);
  }
  static I iadd(I a, I b) {
    return _mm512_add_epi32(a, b);
  }
  static I ixor(I a, I b) {
    return _mm512_xor_si512(a, b);
  }
  static I mul_wide(I a, I b) {
    return _mm512_mul_epu32(a, b);
  }
  static I high_half(I a) {
    return _mm512_srli_epi64(a, 32);
  }
  /// The words of all counters as they follow one another: the first half of them, then the second.
  static void interleave(I w0, I w1, I w2, I w3, I& first_half, I& second_half) {
    const I p01 = _mm512_mask_shuffle_epi32(w0, 0xaaaa, w1, _MM_PERM_CCAA);
    const I p23 = _mm512_mask_shuffle_epi32(w2, 0xaaaa, w3, _MM_PERM_CCAA);
    first_half = _mm512_unpacklo_epi64(p01, p23);
    second_half = _mm512_unpackhi_epi64(p01, p23);
  }
  /// Lanes whose word is at least `threshold`, both unsigned, keep x; the others are 0.
  static F keep_from(F x, I words, I threshold) {
    return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(words, threshold), x);
  }

 private:
  static __mmask16 first(int n) {
    return static_cast<__mmask16>((1u << n) - 1u);
  }
};

#if defined(__AVX512VNNI__)
struct Avx512Vnni : Avx512 {
  // Assembly, not the intrinsic: g++ 12 copies and spills the accumulators of _mm512_dpbusd_epi32 once 24 of
  // them are live, which halves the speed of a 6 × 4 tile.
  static I dot_u8(I acc, I weights, I activations) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(activations));
    return acc;
  }
  static I dot_u4(I acc, I weights, I activations) { return dot_u8(acc, weights, activations); }
};
#endif

#if defined(__AVX512BF16__)
struct Avx512Bf16 : Avx512Vnni {
  /// acc + a[2i] b[2i] + a[2i+1] b[2i+1] in each lane.
  static F dot_bf16(F acc, I a, I b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

}  // namespace inkling::simd
