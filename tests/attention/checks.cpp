// What sdpa() and its gradient refuse, by the name of the argument.
#include "attention/checks.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "tests/attention/gradients.h"

namespace inkling {
namespace {

using test::Data;
using test::Gradients;
using test::make_context;
using test::Problem;
using test::Random;

TEST_CASE("wrong arguments are refused with their name") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(1);
  Problem good(random, DType::f32, 4, 2, 8, {{3, 5}});
  const auto refusal = [&](const SdpaArgs& args) -> std::string {
    try {
      sdpa(context, args);
    } catch (const Error& error) {
      CHECK(error.code() == Code::usage);
      return error.what();
    }
    return "";
  };
  CHECK(refusal(good.args).empty());
  SdpaArgs bad = good.args;
  bad.k.shape[1] = bad.v.shape[1] = 3;
  CHECK(refusal(bad).find("k:") != std::string::npos);
  bad = good.args;
  bad.dropout.p = 1.0f;
  CHECK(refusal(bad).find("dropout") != std::string::npos);
  bad = good.args;
  const std::int32_t wrong[] = {0, 4};
  bad.cu_k = wrong;
  CHECK(refusal(bad).find("cu_k") != std::string::npos);
  bad = good.args;
  bad.mask.kind = MaskKind::additive_bias;
  CHECK(refusal(bad).find("mask.bias") != std::string::npos);
  bad = good.args;
  bad.mask.kind = MaskKind::document;
  CHECK(refusal(bad).find("document") != std::string::npos);
  bad = good.args;
  bad.lse.shape[0] = 3;
  CHECK(refusal(bad).find("lse") != std::string::npos);
  for (const float scale : {NAN, INFINITY, -INFINITY}) {
    bad = good.args;
    bad.scale = scale;
    CHECK(refusal(bad).find("scale: expected a finite one, got ") != std::string::npos);
  }
  bad = good.args;
  alignas(kDrawnAlignment) char drawn[2 * kDrawnAlignment];
  bad.dropout.drawn = drawn;
  CHECK(refusal(bad).empty());
  bad.dropout.drawn = drawn + 4;
  CHECK(refusal(bad) == "sdpa: dropout: expected drawn at a multiple of 16 bytes, got 4 behind one");
}

TEST_CASE("a tensor without memory is refused where it would be read, and may be asked about") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(1);
  Problem good(random, DType::f32, 4, 2, 8, {{3, 5}, {1, 0}});
  const auto refused = [&](const SdpaArgs& args, const std::string& message) {
    CAPTURE(message);
    CHECK(choose(context, args).backend == SdpaBackend::decode);
    CHECK_THROWS_WITH_AS(sdpa(context, args), message.c_str(), Error);
  };
  const auto without = [&](TensorView SdpaArgs::*tensor) {
    SdpaArgs args = good.args;
    (args.*tensor).data = nullptr;
    return args;
  };
  refused(without(&SdpaArgs::q), "sdpa: q: expected memory for [4, 4, 8], got a null address");
  refused(without(&SdpaArgs::k), "sdpa: k: expected memory for [5, 2, 8], got a null address");
  refused(without(&SdpaArgs::v), "sdpa: v: expected memory for [5, 2, 8], got a null address");
  refused(without(&SdpaArgs::out), "sdpa: out: expected memory for [4, 4, 8], got a null address");
  for (const MaskKind kind : {MaskKind::additive_bias, MaskKind::boolean}) {
    good.set_mask(random, kind, true);
    SdpaArgs args = good.args;
    args.mask.bias.data = nullptr;
    refused(args, "sdpa: mask.bias: expected memory for [2, 4, 3, 5], got a null address");
  }
  good.set_mask(random, MaskKind::document, false);
  SdpaArgs args = good.args;
  args.mask.document_k = {static_cast<const std::int32_t*>(nullptr), 5};
  refused(args, "sdpa: mask: expected documents of q and k, got a null address");

  Problem empty(random, DType::f32, 4, 2, 8, {{0, 0}});
  args = empty.args;
  args.q.data = args.k.data = args.v.data = args.out.data = nullptr;
  CHECK_NOTHROW(sdpa(context, args));
}

TEST_CASE("gradients without memory are refused with their name") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(1);
  Problem problem(random, DType::f32, 2, 1, 8, {{2, 5}});
  sdpa(context, problem.args);
  const Data dout(random, DType::f32, {2, 2, 8});
  const Gradients g(problem);
  SdpaBackwardArgs good;
  good.forward = problem.args;
  good.dout = dout.view();
  good.dq = g.dq.view();
  good.dk = g.dk.view();
  good.dv = g.dv.view();
  CHECK_NOTHROW(sdpa_backward(context, good));
  const auto refused = [&](TensorView SdpaBackwardArgs::*tensor, const char* message) {
    SdpaBackwardArgs args = good;
    (args.*tensor).data = nullptr;
    CHECK_THROWS_WITH_AS(sdpa_backward(context, args), message, Error);
  };
  refused(&SdpaBackwardArgs::dout, "sdpa_backward: dout: expected memory for [2, 2, 8], got a null address");
  refused(&SdpaBackwardArgs::dq, "sdpa_backward: dq: expected memory for [2, 2, 8], got a null address");
  refused(&SdpaBackwardArgs::dk, "sdpa_backward: dk: expected memory for [5, 1, 8], got a null address");
  refused(&SdpaBackwardArgs::dv, "sdpa_backward: dv: expected memory for [5, 1, 8], got a null address");
  SdpaBackwardArgs bad = good;
  bad.forward.out.data = nullptr;
  CHECK_THROWS_WITH_AS(sdpa_backward(context, bad),
                       "sdpa: out: expected memory for [2, 2, 8], got a null address", Error);
  bad = good;
  bad.forward.lse = {};
  CHECK_THROWS_WITH_AS(sdpa_backward(context, bad),
                       "sdpa_backward: forward.lse: expected what sdpa() wrote, got none", Error);
}

}  // namespace
}  // namespace inkling
