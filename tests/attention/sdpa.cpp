#include "attention/sdpa.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

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
using test::tolerance;

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
      check_backend(context, problem, SdpaBackend::math);
      // As many queries as decode takes, and fewer: it is the keys that it cuts.
      Problem few(random, kDtypes[turn % 3], 2, 1, 8, {{t % 8 + 1, t}, {1, t + 128}, {8, t}});
      few.set_mask(random, kMasks[m], turn % 2 == 0);
      check_backend(context, few, SdpaBackend::decode);
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

}  // namespace
}  // namespace inkling
