#include "attention/sdpa.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "attention/causal_bias.h"
#include "attention/kv_cache.h"
#include "tests/attention/problem.h"

namespace inkling {
namespace {

using test::attention_isas;
using test::Data;
using test::kDims;
using test::kDtypes;
using test::kMasks;
using test::make_context;
using test::Problem;
using test::Random;

// Sums are f32 whatever the dtype: 2e-5 holds what their roundings add up to. A result of 16 bits is then
// rounded once more, by the unit roundoff of at most the largest value.
double tolerance(const Problem& problem) {
  const double unit = problem.dtype == DType::f32 ? 0 : problem.dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  return 2e-5 + unit * problem.largest_value() / (1 - double{problem.args.dropout.p});
}

void check_backend(ExecContext& context, Problem& problem, SdpaBackend backend) {
  problem.out.fill(NAN);
  problem.lse.fill(NAN);
  SdpaScope scope(context, {backend});
  CHECK(sdpa(context, problem.args) == backend);
  const auto [out, lse] = problem.errors();
  CHECK(out < tolerance(problem));
  CHECK(lse < 1e-5);
}

TEST_CASE("every backend, dtype, mask, alignment and head dim against f64") {
  for (const Isa isa : attention_isas()) {
    ExecContext context = make_context(isa, 2);
    Random random(static_cast<std::uint64_t>(isa));
    for (const DType dtype : kDtypes) {
      for (const std::int64_t dim : kDims) {
        // Lengths 0 and 1, Tq < Tk, Tq > Tk, Hkv < H.
        Problem problem(random, dtype, 4,
                        dim == 64   ? 1
                        : dim == 40 ? 2
                                    : 4,
                        dim, {{3, 70}, {0, 5}, {1, 1}, {4, 0}, {3, 2}, {2, 130}});
        for (const MaskKind kind : kMasks) {
          problem.set_mask(random, kind, dim % 3 == 2);
          for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
            INFO(isa_name(isa), " ", dtype_name(dtype), " D=", dim, " ", mask_kind_name(kind), " ",
                 sdpa_backend_name(backend));
            check_backend(context, problem, backend);
          }
        }
      }
    }
  }
}

// As above, with more rows than a task of flash takes, at the edges of its blocks, in both directions.
TEST_CASE("flash and math beyond a block of rows against f64") {
  const std::vector<Isa> isas = attention_isas();
  Random random(2);
  std::size_t turn = 0;
  for (const DType dtype : kDtypes) {
    for (const std::int64_t dim : kDims) {
      Problem problem(random, dtype, 4, dim % 3 == 2 ? 4 : 2, dim, {{50, 70}, {70, 50}, {1, 130}, {0, 3}});
      for (const MaskKind kind : kMasks) {
        ExecContext context = make_context(isas[turn++ % isas.size()], 2);
        problem.set_mask(random, kind, dim % 3 == 1);
        INFO(isa_name(context.isa()), " ", dtype_name(dtype), " D=", dim, " ", mask_kind_name(kind));
        check_backend(context, problem, SdpaBackend::flash);
        check_backend(context, problem, SdpaBackend::math);
      }
    }
  }
}

TEST_CASE("every length modulo 128 under every mask") {
  const std::vector<Isa> isas = attention_isas();
  Random random(1);
  for (std::int64_t t = 1; t <= 128; ++t) {
    for (std::size_t m = 0; m < std::size(kMasks); ++m) {
      const auto turn = static_cast<std::size_t>(t) + m;
      Problem problem(random, kDtypes[turn % 3], 2, 1, 8, {{t, t}, {t, t + 7}, {t + 3, t}});
      problem.set_mask(random, kMasks[m], turn % 2 == 0);
      ExecContext context = make_context(isas[turn / 3 % isas.size()], 2);
      INFO(isa_name(context.isa()), " T=", t, " ", mask_kind_name(kMasks[m]));
      check_backend(context, problem, SdpaBackend::flash);
    }
  }
}

TEST_CASE("lengths beyond a split") {
  ExecContext context = make_context(supported_isas().back(), 2);
  Random random(1);
  for (const MaskKind kind : kMasks) {
    Problem problem(random, DType::bf16, 2, 1, 24, {{5, 1100}, {8, 512}, {1, 513}});
    problem.set_mask(random, kind, true);
    INFO(mask_kind_name(kind));
    check_backend(context, problem, SdpaBackend::flash);
    check_backend(context, problem, SdpaBackend::decode);
  }
}

TEST_CASE("flash and decode give the same bits, for any threads and batch") {
  for (const Isa isa : supported_isas()) {
    Random random(9);
    for (const MaskKind kind : kMasks) {
      INFO(isa_name(isa), " ", mask_kind_name(kind));
      Problem problem(random, DType::f32, 4, 2, 40, {{7, 700}, {1, 90}, {8, 8}, {3, 1030}}, 2.0f);
      problem.set_mask(random, kind, false);
      problem.args.dropout = {0.25f, 99, 7};
      ExecContext one = make_context(isa, 1), three = make_context(isa, 3);
      Data reference(DType::f32, {problem.cu_q.back(), 4, 40}), lse(DType::f32, {4, problem.cu_q.back()});
      SdpaArgs args = problem.args;
      args.out = reference.view();
      args.lse = lse.view();
      CHECK(sdpa(one, args) == SdpaBackend::decode);
      for (ExecContext* context : {&one, &three}) {  // eight heads: flash takes them whole, or cut
        for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode}) {
          SdpaScope scope(*context, {backend});
          problem.out.fill(NAN);
          sdpa(*context, problem.args);
          CHECK(problem.out.same_bits(reference));
          CHECK(problem.lse.same_bits(lse));
        }
      }
    }
  }
}

TEST_CASE("flash gives every sequence of an uneven batch its bits alone, for any threads") {
  const Isa isa = supported_isas().back();
  std::vector<std::pair<std::int64_t, std::int64_t>> one_long(16, {20, 20}), all_short(24, {20, 20});
  one_long.emplace_back(300, 300);                    // heads are cut
  all_short[5] = {60, 70}, all_short[23] = {40, 90};  // heads are whole
  for (const auto& lengths : {one_long, all_short}) {
    Random random(10);
    Problem problem(random, DType::f32, 3, 3, 40, lengths, 2.0f);
    problem.set_mask(random, MaskKind::causal_lower_right, false);
    Data alone(DType::f32, {problem.cu_q.back(), 3, 40});
    ExecContext one = make_context(isa, 1);
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      const auto [queries, keys] = lengths[b];
      const std::int32_t cu_q[] = {0, static_cast<std::int32_t>(queries)},
                         cu_k[] = {0, static_cast<std::int32_t>(keys)};
      const auto part = [&](const TensorView& all, std::int64_t first, std::int64_t rows) {
        return TensorView(static_cast<float*>(all.data) + first * 3 * 40, DType::f32, {rows, 3, 40});
      };
      SdpaArgs args = problem.args;
      args.q = part(args.q, problem.cu_q[b], queries);
      args.k = part(args.k, problem.cu_k[b], keys);
      args.v = part(args.v, problem.cu_k[b], keys);
      args.out = part(alone.view(), problem.cu_q[b], queries);
      args.lse = {};
      args.cu_q = cu_q;
      args.cu_k = cu_k;
      sdpa(one, args);
    }
    for (const int threads : {1, 2, 3}) {
      ExecContext context = make_context(isa, threads);
      SdpaScope scope(context, {SdpaBackend::flash});
      problem.out.fill(NAN);
      sdpa(context, problem.args);
      CHECK(problem.out.same_bits(alone));
    }
  }
}

TEST_CASE("a cache and packed keys give the same bits") {
  for (const Isa isa : supported_isas()) {
    ExecContext context = make_context(isa, 2);
    Random random(2);
    Problem problem(random, DType::f32, 2, 2, 20, {{2, 100}, {1, 600}});
    problem.set_mask(random, MaskKind::causal_lower_right, false);
    KvPool pool({1, 2, 20, DType::f32});
    std::vector<KvSequence> sequences;
    std::vector<const KvSequence*> pointers;
    for (std::size_t b = 0; b < 2; ++b) {
      KvSequence& s = sequences.emplace_back(pool);
      const std::int64_t tk = problem.cu_k[b + 1] - problem.cu_k[b];
      s.reserve(tk);
      for (std::int64_t t = 0; t < tk; ++t) {
        for (std::int64_t h = 0; h < 2; ++h) {
          auto* head = reinterpret_cast<float*>(s.pages()[static_cast<std::size_t>(t / 64)] +
                                                pool.shape().offset(0, h));
          for (std::int64_t d = 0; d < 32; ++d) {
            const auto bb = static_cast<std::int64_t>(b);
            if (d < 20) head[d * 64 + t % 64] = problem.kv_at(problem.k, bb, t, h, d);
            head[20 * 64 + t % 64 * 32 + d] = d < 20 ? problem.kv_at(problem.v, bb, t, h, d) : 0.0f;
          }
        }
      }
      s.advance(tk);
    }
    for (const KvSequence& s : sequences) pointers.push_back(&s);
    for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
      SdpaScope scope(context, {backend});
      sdpa(context, problem.args);
      Data out(DType::f32, {3, 2, 20});
      SdpaArgs args = problem.args;
      args.k = args.v = TensorView();
      args.cu_k = {};
      args.cache = pointers;
      args.out = out.view();
      sdpa(context, args);
      CHECK(out.same_bits(problem.out));
    }
  }
}

TEST_CASE("dropout draws the documented mask and the exact rate") {
  for (const Isa isa : supported_isas()) {
    ExecContext context = make_context(isa, 2);
    Random random(8);
    Problem problem(random, DType::f32, 2, 1, 16, {{70, 131}, {5, 64}});
    problem.set_mask(random, MaskKind::causal_lower_right, false);
    problem.args.dropout = {0.1f, 0x123456789abcdefull, 42};
    check_backend(context, problem, SdpaBackend::flash);
    check_backend(context, problem, SdpaBackend::math);
  }
  std::int64_t kept = 0;
  constexpr std::int64_t kDraws = 1 << 20;
  for (std::uint32_t i = 0; i < kDraws / 4; ++i) {
    for (const std::uint32_t word : philox({i % 256, i / 256, 5, 0}, 3)) {
      kept += word >= static_cast<std::uint32_t>(0.1 * 4294967296.0);
    }
  }
  CHECK(std::fabs(static_cast<double>(kept) / kDraws - 0.9) < 4 * std::sqrt(0.09 / kDraws));
}

TEST_CASE("adversarial scores") {
  for (const Isa isa : supported_isas()) {
    ExecContext context = make_context(isa, 1);
    Random random(6);
    Problem huge(random, DType::f32, 1, 1, 8, {{16, 300}}, 4000.0f);
    for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode, SdpaBackend::math}) {
      SdpaScope scope(context, {backend});
      sdpa(context, huge.args);
      CHECK(huge.errors().first < 5e-3);
    }
    // Each key beats those before it, by more than a row waits for before it is scaled anew.
    Problem rising(random, DType::f32, 1, 1, 8, {{16, 1100}});
    for (std::int64_t i = 0; i < rising.q.size(); ++i) rising.q.set(i, 1.0f);
    for (std::int64_t i = 0; i < rising.k.size(); ++i) rising.k.set(i, 0.05f * static_cast<float>(i / 8));
    for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode, SdpaBackend::math}) {
      SdpaScope scope(context, {backend});
      rising.out.fill(NAN);
      sdpa(context, rising.args);
      CHECK(rising.errors().first < 1e-4);  // scores of 155: 8 roundings of 2^-18 each
    }
    Problem hidden(random, DType::f32, 1, 1, 8, {{16, 300}});
    hidden.set_mask(random, MaskKind::additive_bias, false);
    hidden.bias.fill(-INFINITY);
    for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode, SdpaBackend::math}) {
      SdpaScope scope(context, {backend});
      hidden.out.fill(NAN);
      sdpa(context, hidden.args);
      CHECK(hidden.errors() == std::pair{0.0, 0.0});
    }
  }
}

TEST_CASE("choose() names the backend and why not the others") {
  ExecContext context = make_context(Isa::portable, 2);
  Random random(1);
  Problem few(random, DType::f32, 2, 1, 8, {{8, 50}}), many(random, DType::f32, 2, 1, 8, {{9, 50}});
  CHECK(choose(context, few.args).backend == SdpaBackend::decode);
  const SdpaChoice choice = choose(context, many.args);
  CHECK(choice.backend == SdpaBackend::flash);
  REQUIRE(choice.refused.size() == 2);
  CHECK(choice.refused[0].backend == SdpaBackend::decode);
  CHECK(choice.refused[0].reason == "Tq · H/Hkv = 9 · 2 = 18 query rows, at most 16");
  CHECK(choice.refused[1].reason == "flash comes first");
  {
    SdpaScope scope(context, {SdpaBackend::math, SdpaBackend::flash});
    CHECK(choose(context, many.args).backend == SdpaBackend::math);
    {
      SdpaScope inner(context, SdpaPolicy{{SdpaBackend::math}, 1000});
      CHECK_FALSE(choose(context, many.args).backend.has_value());
      CHECK_FALSE(supports(context, SdpaBackend::math, many.args).ok);
      std::string message;
      try {
        sdpa(context, many.args);
      } catch (const Error& error) {
        message = error.what();
      }
      CHECK(message.find("memory_limit") != std::string::npos);
      CHECK(message.find("Tq=9") != std::string::npos);
      CHECK(message.find("not among the backends") != std::string::npos);
    }
    CHECK(sdpa_policy(context).order.size() == 2);
  }
  CHECK(sdpa_policy(context).order.size() == 3);
  CHECK(parse_sdpa_backend("flash") == SdpaBackend::flash);
  CHECK_FALSE(parse_sdpa_backend("efficient").has_value());
}

TEST_CASE("weights too large for any machine are refused, whatever their bytes come to modulo 2⁶⁴") {
  ExecContext context = make_context(Isa::portable, 2);
  float nothing = 0;
  const std::int32_t cu[] = {0, 1 << 30};
  SdpaArgs args;
  args.q = args.k = args.v = args.out = TensorView(&nothing, DType::f32, {1 << 30, 2, 8});
  args.cu_q = args.cu_k = cu;
  CHECK(sdpa_quadratic_bytes(context, SdpaBackend::math, args) == SIZE_MAX);  // 2 threads · 2⁶⁰ · 8
  CHECK_FALSE(supports(context, SdpaBackend::math, args).ok);
}

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

TEST_CASE("causal biases print, compare and differ when Tq ≠ Tk") {
  CHECK(causal_upper_left(2, 5).to_string() == "1 0 0 0 0\n1 1 0 0 0\n");
  CHECK(causal_lower_right(2, 5).to_string() == "1 1 1 1 0\n1 1 1 1 1\n");
  CHECK(causal_lower_right(3, 2).to_string() == "0 0\n1 0\n1 1\n");
  CHECK(causal_upper_left(2, 10).to_string() == "1 0 0 0 0 0 0 0 0 0\n1 1 0 0 0 0 0 0 0 0\n");
  CHECK(causal_lower_right(2, 10).to_string() == "1 1 1 1 1 1 1 1 1 0\n1 1 1 1 1 1 1 1 1 1\n");
  CHECK(causal_upper_left(4, 4) == causal_lower_right(4, 4));
  CHECK(causal_upper_left(2, 10) == causal_upper_left(2, 10));
  CHECK(causal_upper_left(2, 10) != causal_lower_right(2, 10));
  CHECK_FALSE(causal_upper_left(2, 10) == causal_upper_left(2, 11));
  CHECK_THROWS_AS(causal_upper_left(-1, 2), Error);

  // The tutorial's example: 2 queries, 10 keys.
  ExecContext context = make_context(supported_isas().back(), 1);
  Random random(5);
  Problem upper(random, DType::f32, 2, 2, 16, {{2, 10}});
  Data lower(DType::f32, {2, 2, 16}), upper_again(DType::f32, {2, 2, 16});
  upper.args.mask = causal_upper_left(2, 10).mask();
  sdpa(context, upper.args);
  SdpaArgs args = upper.args;
  args.out = upper_again.view();
  args.mask.kind = MaskKind::causal_upper_left;
  sdpa(context, args);
  CHECK(upper_again.same_bits(upper.out));
  args.out = lower.view();
  args.mask = causal_lower_right(2, 10).mask();
  sdpa(context, args);
  CHECK_FALSE(lower.same_bits(upper.out));
}

TEST_CASE("a causal bias masks sequences of its own lengths alone") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(5);
  Problem problem(random, DType::f32, 2, 2, 8, {{2, 10}, {3, 5}});
  problem.args.mask = causal_lower_right(2, 10).mask();
  CHECK_THROWS_WITH_AS(
      sdpa(context, problem.args),
      "sdpa: mask: expected sequences of 2 queries and 10 keys, which the mask was made for, "
      "got 3 and 5 in sequence 1",
      Error);
  Problem twice(random, DType::f32, 2, 2, 8, {{2, 10}, {2, 10}});
  twice.args.mask = causal_lower_right(2, 10).mask();
  CHECK_NOTHROW(sdpa(context, twice.args));
}

}  // namespace
}  // namespace inkling
