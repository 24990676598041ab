// Problems of problem.h on a GPU.
#pragma once

#include <cmath>

#include "tests/attention/gpu_copy.h"
#include "tests/attention/gradients.h"

namespace inkling::test {

/// A problem whose mask is set, on the GPU.
class GpuProblem {
 public:
  SdpaArgs args;

  GpuProblem(ExecContext& gpu, Problem& problem, Layout layout = Layout::packed)
      : gpu_(gpu),
        problem_(problem),
        layout_(layout),
        q_(gpu, problem.args.q, layout),
        k_(gpu, problem.args.k, layout),
        v_(gpu, problem.args.v, layout),
        out_(gpu, problem.args.out, layout),
        lse_(gpu, problem.args.lse),
        bias_(gpu, problem.args.mask.bias) {
    args = problem.args;
    args.q = q_.view();
    args.k = k_.view();
    args.v = v_.view();
    args.out = out_.view();
    args.lse = lse_.view();
    args.mask.bias = bias_.view();
  }

  /// Fills problem.out and problem.lse.
  void run(SdpaBackend backend) {
    poison();
    const SdpaScope scope(gpu_, {backend});
    CHECK(sdpa(gpu_, args) == backend);
    fetch();
  }
  /// out and lse to NaN on both sides.
  void poison() {
    problem_.out.fill(NAN);
    problem_.lse.fill(NAN);
    out_.send();
    lse_.send();
  }
  void fetch() {
    out_.fetch();
    lse_.fetch();
  }
  /// After run(): fills `to`.
  void differentiate(const Data& dout, Gradients& to) {
    GpuCopy d(gpu_, dout.view(), layout_), q(gpu_, to.dq.view(), layout_), k(gpu_, to.dk.view(), layout_),
        v(gpu_, to.dv.view(), layout_);
    const bool biased = to.dbias.size() > 1;
    GpuCopy bias(gpu_, biased ? to.dbias.view() : TensorView());
    SdpaBackwardArgs a;
    a.forward = args;
    a.dout = d.view();
    a.dq = q.view();
    a.dk = k.view();
    a.dv = v.view();
    if (biased) a.dbias = bias.view();
    CHECK(sdpa_backward(gpu_, a) == SdpaBackend::flash);
    for (GpuCopy* copy : {&q, &k, &v}) copy->fetch();
    if (biased) bias.fetch();
  }

 private:
  ExecContext& gpu_;
  Problem& problem_;
  Layout layout_;
  GpuCopy q_, k_, v_, out_, lse_, bias_;
};

}  // namespace inkling::test
