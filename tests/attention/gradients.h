// Gradients of the problems of problem.h.
#pragma once

#include <doctest/doctest.h>

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
  if (g.dbias.size() > 1) args.dbias = g.dbias.view();
  SdpaScope scope(context, {backend});
  CHECK(sdpa_backward(context, args) == backend);
  return g;
}

}  // namespace inkling::test
