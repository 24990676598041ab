#include "attention/sdpa_backward.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/attention/gradients.h"

namespace inkling {
namespace {

using test::attention_isas;
using test::Data;
using test::difference;
using test::differentiate;
using test::Gradients;
using test::kDims;
using test::kDtypes;
using test::kMasks;
using test::make_context;
using test::Problem;
using test::Random;

TEST_CASE("flash and math gradients agree for every dtype, mask, head dim and with dropout, by ISA in turn") {
  const std::vector<Isa> isas = attention_isas();
  Random random(50);
  std::size_t turn = 0;
  for (const DType dtype : kDtypes) {
    for (const std::int64_t dim : kDims) {
      const std::int64_t kv_heads = dim == 64 ? 1 : dim % 3 == 1 ? 2 : 4;
      Problem problem(random, dtype, 4, kv_heads, dim, {{50, 70}, {0, 5}, {1, 1}, {4, 0}, {70, 65}});
      const Data dout(random, dtype, {problem.cu_q.back(), 4, dim});
      for (const MaskKind kind : kMasks) {
        ExecContext context = make_context(isas[turn++ % isas.size()], 2);
        problem.set_mask(random, kind, dim == 8);
        problem.args.dropout = {dim == 40 || dim == 256 ? 0.2f : 0.0f, 5, 1};
        INFO(isa_name(context.isa()), " ", dtype_name(dtype), " D=", dim, " ", mask_kind_name(kind));
        sdpa(context, problem.args);
        const Gradients want = differentiate(context, problem, dout, SdpaBackend::math);
        const Gradients got = differentiate(context, problem, dout, SdpaBackend::flash);
        // With 16-bit outputs δ is taken from rounded values.
        const double tolerance = dtype == DType::f32 ? 1e-4 : dtype == DType::f16 ? 5e-3 : 4e-2;
        CHECK(difference(got.dq, want.dq) < tolerance);
        CHECK(difference(got.dk, want.dk) < tolerance);
        CHECK(difference(got.dv, want.dv) < tolerance);
        if (kind == MaskKind::additive_bias) CHECK(difference(got.dbias, want.dbias) < tolerance);
      }
    }
  }
}

TEST_CASE("every length modulo 128 has finite and right gradients under every mask") {
  const std::vector<Isa> isas = attention_isas();
  Random random(77);
  for (std::int64_t t = 1; t <= 128; ++t) {
    for (std::size_t m = 0; m < std::size(kMasks); ++m) {
      const auto turn = static_cast<std::size_t>(t) + m;
      ExecContext context = make_context(isas[turn % isas.size()], 2);
      Problem problem(random, DType::f32, 2, turn % 2 == 0 ? 1 : 2, 8, {{t, t}, {t + 2, t + 5}, {t + 3, t}});
      const Data dout(random, DType::f32, {problem.cu_q.back(), 2, 8});
      problem.set_mask(random, kMasks[m], false);
      INFO(isa_name(context.isa()), " T=", t, " ", mask_kind_name(kMasks[m]));
      sdpa(context, problem.args);
      const Gradients want = differentiate(context, problem, dout, SdpaBackend::math);
      const Gradients got = differentiate(context, problem, dout, SdpaBackend::flash);
      CHECK(difference(got.dq, want.dq) < 1e-4);
      CHECK(difference(got.dk, want.dk) < 1e-4);
      CHECK(difference(got.dv, want.dv) < 1e-4);
      if (kMasks[m] == MaskKind::additive_bias) CHECK(difference(got.dbias, want.dbias) < 1e-4);
    }
  }
}

TEST_CASE("gradients of adversarial scores are finite and right, those of rows that see nothing zero") {
  for (const Isa isa : attention_isas()) {
    CAPTURE(isa_name(isa));
    ExecContext context = make_context(isa, 2);
    Random random(8);
    Problem huge(random, DType::f32, 1, 1, 8, {{70, 130}}, 4000.0f);
    const Data dout(random, DType::f32, {70, 1, 8});
    sdpa(context, huge.args);
    const Gradients want = differentiate(context, huge, dout, SdpaBackend::math);
    const Gradients got = differentiate(context, huge, dout, SdpaBackend::flash);
    CHECK(difference(got.dv, want.dv) <
          1e-2);  // one key has nearly all the weight: dq and dk cancel to nothing
    for (std::int64_t i = 0; i < got.dq.size(); ++i) REQUIRE(std::isfinite(got.dq.get(i)));
    for (std::int64_t i = 0; i < got.dk.size(); ++i) REQUIRE(std::isfinite(got.dk.get(i)));
    Problem hidden(random, DType::f32, 1, 1, 8, {{70, 130}});
    hidden.set_mask(random, MaskKind::additive_bias, false);
    hidden.bias.fill(-INFINITY);
    sdpa(context, hidden.args);
    const Gradients none = differentiate(context, hidden, dout, SdpaBackend::flash);
    for (const Data* gradient : {&none.dq, &none.dk, &none.dv, &none.dbias}) {
      for (std::int64_t i = 0; i < gradient->size(); ++i) REQUIRE(gradient->get(i) == 0.0f);
    }
  }
}

TEST_CASE("math gradients are those of finite differences, dropout and bias included") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(21);
  for (const MaskKind kind : {MaskKind::causal_lower_right, MaskKind::additive_bias, MaskKind::document}) {
    Problem problem(random, DType::f32, 2, 1, 8, {{4, 6}, {3, 3}});
    problem.set_mask(random, kind, false);
    problem.args.dropout = {0.3f, 17, 2};
    const Data dout(random, DType::f32, {problem.cu_q.back(), 2, 8});
    INFO(mask_kind_name(kind));
    test::check_by_differences(context, problem, dout, 3);
  }
}

TEST_CASE("gradients have the same bits for any threads and in any batch") {
  for (const Isa isa : supported_isas()) {
    Random random(31);
    Problem both(random, DType::f32, 4, 2, 40, {{60, 100}, {130, 130}});
    both.set_mask(random, MaskKind::causal_lower_right, false);
    const Data dout(random, DType::f32, {190, 4, 40});
    ExecContext one = make_context(isa, 1), three = make_context(isa, 3);
    sdpa(one, both.args);
    const Gradients a = differentiate(one, both, dout, SdpaBackend::flash);
    const Gradients b = differentiate(three, both, dout, SdpaBackend::flash);
    CHECK(a.dq.same_bits(b.dq));
    CHECK(a.dk.same_bits(b.dk));
    CHECK(a.dv.same_bits(b.dv));
    // The second sequence alone.
    Problem alone(random, DType::f32, 4, 2, 40, {{130, 130}});
    alone.set_mask(random, MaskKind::causal_lower_right, false);
    Data dout_alone(DType::f32, {130, 4, 40});
    for (std::int64_t i = 0; i < alone.q.size(); ++i) {
      alone.q.set(i, both.q.get(60 * 160 + i));
      dout_alone.set(i, dout.get(60 * 160 + i));
    }
    for (std::int64_t i = 0; i < alone.k.size(); ++i) {
      alone.k.set(i, both.k.get(100 * 80 + i));
      alone.v.set(i, both.v.get(100 * 80 + i));
    }
    sdpa(one, alone.args);
    const Gradients c = differentiate(three, alone, dout_alone, SdpaBackend::flash);
    std::int64_t differing = 0;
    for (std::int64_t i = 0; i < c.dq.size(); ++i) differing += c.dq.get(i) != a.dq.get(60 * 160 + i);
    for (std::int64_t i = 0; i < c.dk.size(); ++i) {
      differing += c.dk.get(i) != a.dk.get(100 * 80 + i) || c.dv.get(i) != a.dv.get(100 * 80 + i);
    }
    CHECK(differing == 0);
  }
}

TEST_CASE("a bias that sequences and heads share has the same gradient for any threads, to the bit") {
  Random random(32);
  Problem problem(random, DType::f32, 4, 4, 8, {{40, 70}, {70, 40}, {33, 70}, {70, 70}});
  problem.set_mask(random, MaskKind::additive_bias, false);
  const Data dout(random, DType::f32, {problem.cu_q.back(), 4, 8});
  ExecContext one = make_context(supported_isas().back(), 1),
              three = make_context(supported_isas().back(), 3);
  sdpa(one, problem.args);
  for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::math}) {
    const Gradients want = differentiate(one, problem, dout, backend);
    for (int round = 0; round < 20; ++round) {
      CHECK(differentiate(three, problem, dout, backend).dbias.same_bits(want.dbias));
    }
  }
}

TEST_CASE("the choice for backward leaves decode out and says why") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(1);
  Problem problem(random, DType::f32, 2, 1, 8, {{2, 5}});
  SdpaBackwardArgs args;
  args.forward = problem.args;
  const SdpaChoice choice = choose_backward(context, args);
  CHECK(choice.backend == SdpaBackend::flash);
  CHECK(choice.to_string().find("decode: it has no backward pass") != std::string::npos);
  CHECK_THROWS_AS(sdpa_backward(context, args), Error);
}

}  // namespace
}  // namespace inkling
