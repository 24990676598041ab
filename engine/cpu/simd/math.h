// Elementary functions on simd vectors: one polynomial each, the same on every ISA up to FMA rounding.
#pragma once

namespace inkling::simd {

/// e^x, relative error below 2e-7; 0 below −87, +inf above 88.8, NaN of NaN.
/// Cody–Waite reduction x = n ln2 + r, |r| ≤ ln2/2, then the degree-6 Taylor–minimax polynomial of e^r.
template <class V>
typename V::F exp(typename V::F x) {
  using F = typename V::F;
  x = V::min(V::set1(89.0f), x);  // the constant first: on x86 min returns its second operand when one is NaN
  const F n = V::round(V::mul(x, V::set1(1.44269504088896341f)));
  F r = V::fma(n, V::set1(-0.693359375f), x);
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  F p = V::set1(1.9875691500e-4f);
  p = V::fma(p, r, V::set1(1.3981999507e-3f));
  p = V::fma(p, r, V::set1(8.3334519073e-3f));
  p = V::fma(p, r, V::set1(4.1665795894e-2f));
  p = V::fma(p, r, V::set1(1.6666665459e-1f));
  p = V::fma(p, r, V::set1(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set1(1.0f)));
  return V::scale2_from(V::set1(-87.0f), x, p, n);
}

/// GELU, tanh form (Hendrycks & Gimpel 2016 §2): x/2 (1 + tanh(√(2/π)(x + 0.044715 x³))) = x / (1 + e^(−2u)).
template <class V>
typename V::F gelu_tanh(typename V::F x) {
  const auto cubic = V::fma(V::mul(x, x), V::set1(0.044715f), V::set1(1.0f));
  const auto u = V::mul(V::mul(x, V::set1(-2.0f * 0.7978845608028654f)), cubic);
  return V::div(x, V::add(V::set1(1.0f), exp<V>(u)));
}

/// erf(x), absolute error below 2e-7 (Abramowitz & Stegun 7.1.26).
template <class V>
typename V::F erf_from(typename V::F x, typename V::F gauss) {  // gauss = e^(−x²)
  const auto a = V::abs(x);
  const auto t = V::div(V::set1(1.0f), V::fma(a, V::set1(0.3275911f), V::set1(1.0f)));
  auto p = V::set1(1.061405429f);
  p = V::fma(p, t, V::set1(-1.453152027f));
  p = V::fma(p, t, V::set1(1.421413741f));
  p = V::fma(p, t, V::set1(-0.284496736f));
  p = V::fma(p, t, V::set1(0.254829592f));
  const auto tail = V::mul(V::mul(p, t), gauss);
  return V::copysign(V::sub(V::set1(1.0f), tail), x);
}
template <class V>
typename V::F erf(typename V::F x) {
  return erf_from<V>(x, exp<V>(V::mul(V::sub(V::zero(), x), x)));
}

/// GELU, exact form: x/2 (1 + erf(x/√2)).
template <class V>
typename V::F gelu_erf(typename V::F x) {
  return V::mul(V::mul(x, V::set1(0.5f)),
                V::add(V::set1(1.0f), erf<V>(V::mul(x, V::set1(0.70710678118654752f)))));
}

template <class V>
typename V::F relu(typename V::F x) {
  return V::max(x, V::zero());
}

}  // namespace inkling::simd
