// Problems of problem.h on a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "tests/attention/gpu_copy.h"
#include "tests/attention/gradients.h"

namespace inkling::test {

/// Unit roundoff. f32 weights are split in tf32 halves: no further rounding to speak of.
inline double unit(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-22;
}

inline double longest_row(const Data& data, std::int64_t dim) {
  double most = 0;
  for (std::int64_t i = 0; i < data.size(); i += dim) {
    double sum = 0;
    for (std::int64_t d = 0; d < dim; ++d) sum += double{data.get(i + d)} * double{data.get(i + d)};
    most = std::max(most, sum);
  }
  return std::sqrt(most);
}

inline double largest(const Data& data) {
  double most = 0;
  for (std::int64_t i = 0; i < data.size(); ++i) {
    if (std::isfinite(data.get(i))) most = std::max(most, std::fabs(double{data.get(i)}));
  }
  return most;
}

/// What out and lse may be off by. A score is a sum of D products in steps of at least 8, each of which may
/// lose 2⁻²² of the sum of their sizes, which is at most |q||k| (tensor cores cut off rather than round); a
/// weight is off by twice that and by the rounding to the 16-bit type; a result by its weights, 2⁻²⁰ for exp2
/// and the sums, and its own rounding, all of it times at most the largest value. (test_attention_cuda holds
/// each element to its own bound.)
inline std::pair<double, double> bounds(const Problem& p) {
  const double scale = p.args.scale ? double{*p.args.scale} : 1 / std::sqrt(static_cast<double>(p.dim));
  double size = longest_row(p.q, p.dim) * longest_row(p.k, p.dim) * std::fabs(scale);
  if (p.args.mask.kind == MaskKind::additive_bias) size += largest(p.bias);
  const double score = static_cast<double>(p.dim / 8 + 2) * 0x1p-22 * size;
  const double value = largest(p.v) / (1 - double{p.args.dropout.p});
  return {(unit(p.dtype) + 2 * score + 0x1p-20 + unit(p.args.out.dtype)) * value + 1e-7, score + 4e-6};
}

/// |got − want| ÷ |want|, over all elements; NaN where one is.
inline double distance(const Data& got, const Data& want) {
  double error = 0, size = 0;
  for (std::int64_t i = 0; i < got.size(); ++i) {
    const double x = double{got.get(i)}, y = double{want.get(i)};
    error += (x - y) * (x - y);
    size += y * y;
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

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
  void differentiate(const Data& dout, Gradients& to, SdpaBackend backend = SdpaBackend::flash) {
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
    const SdpaScope scope(gpu_, {backend});
    CHECK(sdpa_backward(gpu_, a) == backend);
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
