// Gradients of the problems of problem.h.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "attention/sdpa_backward.h"
#include "tests/attention/problem.h"

namespace inkling::test {

/// Gradients of a problem, NaN until they are written.
struct Gradients {
  Data dq, dk, dv, dbias;
  explicit Gradients(const Problem& p, DType dtype = DType::f32)
      : dq(dtype, {p.cu_q.back(), p.heads, p.dim}),
        dk(dtype, {p.cu_k.back(), p.kv_heads, p.dim}),
        dv(dtype, {p.cu_k.back(), p.kv_heads, p.dim}) {
    const TensorView& bias = p.args.mask.bias;
    if (p.args.mask.kind == MaskKind::additive_bias) {
      dbias = Data(DType::f32, {bias.shape[0], bias.shape[1], bias.shape[2], bias.shape[3]});
    }
  }
};

/// By `backend` of the CPU, after sdpa().
inline Gradients differentiate(ExecContext& context, const Problem& p, const Data& dout, SdpaBackend backend,
                               DType dtype = DType::f32) {
  Gradients g(p, dtype);
  SdpaBackwardArgs args;
  args.forward = p.args;
  args.dout = dout.view();
  args.dq = g.dq.view();
  args.dk = g.dk.view();
  args.dv = g.dv.view();
  if (p.args.mask.kind == MaskKind::additive_bias) args.dbias = g.dbias.view();
  SdpaScope scope(context, {backend});
  CHECK(sdpa_backward(context, args) == backend);
  return g;
}

/// The largest |a − b| / (1 + |b|).
inline double difference(const Data& a, const Data& b) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.size(); ++i) {
    const double x = double{a.get(i)}, y = double{b.get(i)};
    worst = worse(worst, std::fabs(x - y) / (1 + std::fabs(y)));
  }
  return worst;
}

/// Every `step`-th element of the gradients of math against central differences of Σ dout · out. f32.
inline void check_by_differences(ExecContext& context, Problem& p, const Data& dout, std::int64_t step) {
  constexpr float kStep = 0.02f;
  const SdpaScope scope(context, {SdpaBackend::math});
  const auto loss = [&] {
    sdpa(context, p.args);
    double sum = 0;
    for (std::int64_t i = 0; i < dout.size(); ++i) sum += double{dout.get(i)} * double{p.out.get(i)};
    return sum;
  };
  loss();
  const Gradients g = differentiate(context, p, dout, SdpaBackend::math);
  const auto check = [&](Data& x, const Data& gradient, const char* name) {
    for (std::int64_t i = 0; i < x.size(); i += step) {
      const float saved = x.get(i);
      if (std::isinf(saved)) continue;
      x.set(i, saved + kStep);
      const double up = loss();
      x.set(i, saved - kStep);
      const double down = loss();
      x.set(i, saved);
      INFO(name, " ", i);
      CHECK(std::fabs((up - down) / (2 * double{kStep}) - double{gradient.get(i)}) < 1e-3);
    }
  };
  check(p.q, g.dq, "dq");
  check(p.k, g.dk, "dk");
  check(p.v, g.dv, "dv");
  if (p.args.mask.kind == MaskKind::additive_bias) check(p.bias, g.dbias, "dbias");
}

}  // namespace inkling::test
