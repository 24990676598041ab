// 2^t on simd vectors. Include only from sources of one ISA.
#pragma once

namespace inkling::cpu {

/// 2^t for t ≤ 127; relative error below 2e-7, exactly 1 at 0, 0 below −125, NaN of NaN.
/// t = n + r with |r| ≤ 1/2, then the degree-5 minimax polynomial of 2^r that is 1 at 0 (error 9.2e-8, by
/// Lawson's iteration). Nine operations for a vector of scores, against fourteen for e^x of
/// engine/cpu/simd/math.h.
template <class V>
inline typename V::F exp2(typename V::F t) {
  using F = typename V::F;
  const F n = V::round(t);
  const F r = V::sub(t, n);
  F p = V::set1(1.3264727065e-03f);
  p = V::fma(p, r, V::set1(9.6715126489e-03f));
  p = V::fma(p, r, V::set1(5.5507337437e-02f));
  p = V::fma(p, r, V::set1(2.4022242085e-01f));
  p = V::fma(p, r, V::set1(6.9314697760e-01f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::scale2_from(V::set1(-125.0f), t, p, n);
}

}  // namespace inkling::cpu
