// sdpa() and its gradient on a GPU: against f64 and the CPU's math, with the promises of sdpa.h. Where no GPU
// can be used each case reports itself skipped. Above 400 lines: all cases share the problems and bounds at
// the top.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "attention/kv_cache.h"
#include "tests/attention/on_gpu.h"

namespace inkling {
namespace {

using test::bounds;
using test::Data;
using test::differentiate;
using test::distance;
using test::GpuCopy;
using test::GpuProblem;
using test::Gradients;
using test::have_gpu;
using test::kLayouts;
using test::kMasks;
using test::Layout;
using test::layout_name;
using test::make_context;
using test::make_gpu_context;
using test::Problem;
using test::Random;
using test::unit;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

void check_backend(ExecContext& gpu, Problem& problem, SdpaBackend backend, Layout layout = Layout::packed) {
  GpuProblem(gpu, problem, layout).run(backend);
  const auto [out, lse] = problem.errors();
  const auto [out_bound, lse_bound] = bounds(problem);
  CHECK(out <= out_bound);
  CHECK(lse <= lse_bound);
}

TEST_CASE("[cuda] sdpa: every backend, dtype, mask, alignment and head dim against f64") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(1);
  for (const DType dtype : kTypes) {
    for (const std::int64_t dim : {1, 7, 8, 32, 40, 64, 80, 96, 128, 256}) {
      // Lengths 0 and 1, Tq < Tk, Tq > Tk, Hkv < H.
      Problem problem(random, dtype, 4,
                      dim == 64   ? 1
                      : dim == 40 ? 2
                                  : 4,
                      dim, {{3, 70}, {0, 5}, {1, 1}, {4, 0}, {3, 2}, {2, 130}});
      std::size_t turn = static_cast<std::size_t>(dim);
      for (const MaskKind kind : kMasks) {
        problem.set_mask(random, kind, dim % 3 == 2);
        const Layout layout = kLayouts[turn++ % 4];
        for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode}) {
          INFO(dtype_name(dtype), " D=", dim, " ", mask_kind_name(kind), " ", sdpa_backend_name(backend), " ",
               layout_name(layout));
          check_backend(gpu, problem, backend, layout);
        }
      }
    }
  }
}

TEST_CASE("[cuda] sdpa: every length modulo 128, several tiles, and every layout of them") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(2);
  for (std::int64_t t = 1; t <= 129; ++t) {
    const auto turn = static_cast<std::size_t>(t);
    Problem problem(random, kTypes[turn % 3], 1, 1, 16, {{t, t}, {t, t + 7}, {t + 3, t}});
    problem.set_mask(random, kMasks[turn % 7], false);
    INFO("T=", t, " ", dtype_name(problem.dtype), " ", mask_kind_name(problem.args.mask.kind));
    check_backend(gpu, problem, SdpaBackend::flash);
  }
  for (const MaskKind kind : kMasks) {
    INFO(mask_kind_name(kind));
    Problem few(random, DType::bf16, 2, 1, 24, {{5, 1100}, {8, 512}, {1, 513}});
    few.set_mask(random, kind, true);
    check_backend(gpu, few, SdpaBackend::flash);
    check_backend(gpu, few, SdpaBackend::decode);
    for (const Layout layout : kLayouts) {
      Problem many(random, DType::bf16, 4, 2, 64, {{200, 200}, {129, 257}, {257, 130}});
      many.set_mask(random, kind, true);
      INFO(layout_name(layout));
      check_backend(gpu, many, SdpaBackend::flash, layout);
    }
  }
}

TEST_CASE("[cuda] sdpa: results in f32 beside 16-bit inputs, a scale of one's own, no lse") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(3);
  for (const float scale : {0.3f, -0.3f, 0.0f}) {
    Problem problem(random, DType::bf16, 2, 2, 64, {{7, 90}, {2, 3}});
    problem.set_mask(random, MaskKind::causal_lower_right, false);
    problem.args.scale = scale;
    problem.out = Data(DType::f32, {9, 2, 64});
    problem.args.out = problem.out.view();
    for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode}) {
      INFO(scale, " ", sdpa_backend_name(backend));
      GpuProblem there(gpu, problem);
      there.run(backend);
      const auto [out, lse] = problem.errors();
      CHECK(out <= bounds(problem).first);
      CHECK(lse <= bounds(problem).second);
      const Data lse_before = std::exchange(problem.lse, Data(DType::f32, {2, 9}));
      there.args.lse = TensorView();
      there.run(backend);
      CHECK(problem.errors().first == out);
      CHECK(std::isnan(problem.lse.get(0)));
      problem.args.lse = problem.lse.view();
    }
  }
}

TEST_CASE("[cuda] sdpa: adversarial scores") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(6);
  for (const DType dtype : kTypes) {
    Problem huge(random, dtype, 1, 1, 8, {{40, 300}}, dtype == DType::f32 ? 4000.0f : 100.0f);
    check_backend(gpu, huge, SdpaBackend::flash);
    Problem hidden(random, dtype, 1, 1, 8, {{16, 300}});
    hidden.set_mask(random, MaskKind::additive_bias, false);
    hidden.bias.fill(-INFINITY);
    for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode}) {
      GpuProblem(gpu, hidden).run(backend);
      CHECK(hidden.errors() == std::pair{0.0, 0.0});
    }
  }
}

TEST_CASE("[cuda] sdpa: no queries, no keys, no sequences") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(7);
  for (const DType dtype : kTypes) {
    for (const std::vector<std::pair<std::int64_t, std::int64_t>>& lengths :
         {std::vector<std::pair<std::int64_t, std::int64_t>>{}, {{0, 0}}, {{0, 5}, {0, 130}}, {{4, 0}}}) {
      Problem problem(random, dtype, 2, 1, 64, lengths);
      const Data dout(random, dtype, {problem.cu_q.back(), 2, 64});
      GpuProblem there(gpu, problem);
      for (const SdpaBackend backend : {SdpaBackend::decode, SdpaBackend::flash}) {
        there.run(backend);
        CHECK(problem.errors() == std::pair{0.0, 0.0});
      }
      Gradients got(problem);
      there.differentiate(dout, got);
      for (const Data* gradient : {&got.dq, &got.dk, &got.dv}) {
        for (std::int64_t i = 0; i < gradient->size(); ++i) CHECK(gradient->get(i) == 0.0f);
      }
    }
  }
}

TEST_CASE("[cuda] sdpa: dropout draws the CPU's mask, bit for bit, forward and backward") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context(), cpu = make_context(supported_isas().back(), 2);
  Random random(8);
  for (const DType dtype : kTypes) {
    for (const MaskKind kind : {MaskKind::none, MaskKind::causal_lower_right, MaskKind::document}) {
      INFO(dtype_name(dtype), " ", mask_kind_name(kind));
      // Weights are uniform and V and dO the identity: out is the mask, and so is dV.
      constexpr std::int64_t kSize = 64;
      Problem problem(random, dtype, 2, 2, kSize, {{kSize, kSize}, {40, kSize}});
      problem.set_mask(random, kind, false);
      problem.args.dropout = {0.3f, 0x123456789abcdefull, 42};
      problem.q.fill(0.0f);
      Data dout(random, dtype, {problem.cu_q.back(), 2, kSize});
      for (Data* data : {&problem.v, &dout}) {
        for (std::int64_t i = 0; i < data->size(); ++i)
          data->set(i, i % kSize == i / (2 * kSize) % kSize ? 1.0f : 0.0f);
      }
      GpuProblem there(gpu, problem);
      there.run(SdpaBackend::flash);
      Gradients got(problem);
      there.differentiate(dout, got);
      const auto mask_of = [](const Data& data) {
        std::vector<bool> kept;
        for (std::int64_t i = 0; i < data.size(); ++i) kept.push_back(data.get(i) != 0.0f);
        return kept;
      };
      const std::vector<bool> drawn = mask_of(problem.out);
      problem.out.fill(NAN);
      SdpaScope scope(cpu, {SdpaBackend::math});
      sdpa(cpu, problem.args);
      CHECK(std::ranges::count(drawn, true) > 1000);
      CHECK(drawn == mask_of(problem.out));
      const Gradients want = differentiate(cpu, problem, dout, SdpaBackend::math);
      CHECK(mask_of(got.dv) == mask_of(want.dv));
    }
    for (const Layout layout : kLayouts) {
      Problem problem(random, dtype, 2, 1, 16, {{70, 131}, {5, 64}});
      problem.set_mask(random, MaskKind::causal_lower_right, false);
      problem.args.dropout = {0.1f, 3, 1};
      check_backend(gpu, problem, SdpaBackend::flash, layout);
    }
  }
}

TEST_CASE("[cuda] sdpa: dropout drawn once and read thrice gives the bits of dropout drawn thrice") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(9);
  for (const DType dtype : kTypes) {
    for (const std::int64_t dim : {32, 64, 80}) {
      for (const MaskKind kind : {MaskKind::none, MaskKind::causal_upper_left, MaskKind::causal_lower_right,
                                  MaskKind::sliding_window}) {
        INFO(dtype_name(dtype), " D=", dim, " ", mask_kind_name(kind));
        Problem problem(random, dtype, 4, dim == 32 ? 2 : 4, dim,
                        {{300, 300}, {0, 5}, {1, 1}, {4, 0}, {70, 265}, {130, 129}, {64, 64}});
        problem.set_mask(random, kind, false);
        problem.args.dropout = {0.3f, 0x123456789abcdefull, 42};
        const Data dout(random, dtype, {problem.cu_q.back(), 4, dim});
        Gradients got(problem);
        const auto run = [&](void* drawn, SdpaBackend forward = SdpaBackend::flash) {
          GpuProblem there(gpu, problem);
          there.args.dropout.drawn = drawn;
          there.run(forward);
          for (Data* data : {&got.dq, &got.dk, &got.dv}) data->fill(NAN);
          there.differentiate(dout, got);
          std::vector<float> all;
          for (const Data* data : {&problem.out, &problem.lse, &got.dq, &got.dk, &got.dv}) {
            for (std::int64_t i = 0; i < data->size(); ++i) all.push_back(data->get(i));
          }
          return all;
        };
        const std::size_t bytes = sdpa_drawn_bytes(4, problem.args.cu_q, problem.args.cu_k);
        const Buffer drawn = gpu.backend().allocate(bytes);
        const std::vector<std::byte> garbage(bytes, std::byte{0xa5});  // what is not drawn is not looked at
        gpu.backend().copy_in(drawn.data(), garbage.data(), bytes);
        CHECK(run(drawn.data()) == run(nullptr));
        // The gradient of flash behind math, which has other roundings, reads what math left.
        gpu.backend().copy_in(drawn.data(), garbage.data(), bytes);
        const Data flash = got.dv.copy();
        run(drawn.data(), SdpaBackend::math);
        CHECK(distance(got.dv, flash) <= (dtype == DType::f32 ? 2e-5 : 2 * unit(dtype)));
      }
    }
  }
}

TEST_CASE("[cuda] sdpa_backward: the CPU's math for every dtype, mask, head dim, layout and with dropout") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context(), cpu = make_context(supported_isas().back(), 2);
  Random random(50);
  std::size_t turn = 0;
  for (const DType dtype : kTypes) {
    for (const std::int64_t dim : {8, 40, 64, 80, 128, 256}) {
      Problem problem(random, dtype, 4, dim == 40 ? 2 : 4, dim,
                      {{50, 70}, {0, 5}, {1, 1}, {4, 0}, {70, 65}, {9, 140}});
      const Data dout(random, dtype, {problem.cu_q.back(), 4, dim});
      for (const MaskKind kind : kMasks) {
        problem.set_mask(random, kind, kind == MaskKind::additive_bias || dim == 8);
        problem.args.dropout = {dim == 40 || dim == 64 ? 0.2f : 0.0f, 5, 1};
        const Layout layout = kLayouts[turn++ % 4];
        const DType gradient = turn % 3 == 0 ? dtype : DType::f32;
        INFO(dtype_name(dtype), " D=", dim, " ", mask_kind_name(kind), " ", layout_name(layout), " to ",
             dtype_name(gradient));
        GpuProblem there(gpu, problem, layout);
        there.run(SdpaBackend::flash);
        Gradients got(problem, gradient);
        there.differentiate(dout, got);
        const Gradients want = differentiate(cpu, problem, dout, SdpaBackend::math);
        // Three roundings meet in a gradient (weights or dS, out in delta, the result), of some u / 2 each.
        const double allowed = dtype == DType::f32 ? 2e-5 : 2 * unit(dtype);
        CHECK(distance(got.dq, want.dq) <= allowed);
        CHECK(distance(got.dk, want.dk) <= allowed);
        CHECK(distance(got.dv, want.dv) <= allowed);
        if (kind == MaskKind::additive_bias) CHECK(distance(got.dbias, want.dbias) <= allowed);
      }
    }
  }
}

TEST_CASE("[cuda] sdpa_backward: every length modulo 128 has finite and right gradients") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context(), cpu = make_context(supported_isas().back(), 2);
  Random random(77);
  for (std::int64_t t = 1; t <= 129; t += 4) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Problem problem(random, dtype, 1, 1, 16, {{t, t}, {t + 2, t + 5}, {130, 130}});
      const Data dout(random, dtype, {problem.cu_q.back(), 1, 16});
      problem.set_mask(random, kMasks[static_cast<std::size_t>(t / 4) % 7], true);
      INFO("T=", t, " ", dtype_name(dtype), " ", mask_kind_name(problem.args.mask.kind));
      GpuProblem there(gpu, problem);
      there.run(SdpaBackend::flash);
      Gradients got(problem);
      there.differentiate(dout, got);
      const Gradients want = differentiate(cpu, problem, dout, SdpaBackend::math);
      const double allowed = dtype == DType::f32 ? 2e-5 : 2 * unit(dtype);
      CHECK(distance(got.dq, want.dq) <= allowed);
      CHECK(distance(got.dk, want.dk) <= allowed);
      CHECK(distance(got.dv, want.dv) <= allowed);
    }
  }
}

/// Sequence b of `both` as a problem of its own.
std::unique_ptr<Problem> alone_of(const Problem& both, std::size_t b) {
  Random random(0);
  auto alone =
      std::make_unique<Problem>(random, both.dtype, both.heads, both.kv_heads, both.dim,
                                std::vector<std::pair<std::int64_t, std::int64_t>>{
                                    {both.cu_q[b + 1] - both.cu_q[b], both.cu_k[b + 1] - both.cu_k[b]}});
  alone->args.mask = both.args.mask;
  const std::int64_t q = both.cu_q[b] * both.heads * both.dim, k = both.cu_k[b] * both.kv_heads * both.dim;
  for (std::int64_t i = 0; i < alone->q.size(); ++i) alone->q.set(i, both.q.get(q + i));
  for (std::int64_t i = 0; i < alone->k.size(); ++i) {
    alone->k.set(i, both.k.get(k + i));
    alone->v.set(i, both.v.get(k + i));
  }
  return alone;
}

std::int64_t differing(const Data& part, const Data& whole, std::int64_t from) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < part.size(); ++i) count += part.get(i) != whole.get(from + i);
  return count;
}

TEST_CASE("[cuda] sdpa: a sequence has the same bits alone and in a batch, forward and backward") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(31);
  for (const DType dtype : kTypes) {
    for (const std::int64_t dim : {40, 64, 128}) {
      Problem both(random, dtype, 4, 2, dim, {{60, 100}, {130, 130}, {1, 300}, {7, 64}});
      both.set_mask(random, MaskKind::causal_lower_right, false);
      Problem few(random, dtype, 4, 2, dim, {{1, 300}, {8, 130}, {3, 700}, {2, 1}});
      few.set_mask(random, MaskKind::causal_lower_right, false);
      const Data dout(random, dtype, {both.cu_q.back(), 4, dim});
      GpuProblem there(gpu, both);
      there.run(SdpaBackend::flash);
      Gradients all(both);
      there.differentiate(dout, all);
      GpuProblem(gpu, few).run(SdpaBackend::decode);
      for (std::size_t b = 0; b < 4; ++b) {
        INFO(dtype_name(dtype), " D=", dim, " sequence ", b);
        const auto one = alone_of(both, b);
        const std::int64_t q = both.cu_q[b] * 4 * dim, k = both.cu_k[b] * 2 * dim;
        Data part(dtype, {one->cu_q.back(), 4, dim});
        for (std::int64_t i = 0; i < part.size(); ++i) part.set(i, dout.get(q + i));
        GpuProblem by_itself(gpu, *one);
        by_itself.run(SdpaBackend::flash);
        Gradients own(*one);
        by_itself.differentiate(part, own);
        CHECK(differing(one->out, both.out, q) == 0);
        CHECK(differing(own.dq, all.dq, q) == 0);
        CHECK(differing(own.dk, all.dk, k) == 0);
        CHECK(differing(own.dv, all.dv, k) == 0);
        const auto short_one = alone_of(few, b);
        GpuProblem(gpu, *short_one).run(SdpaBackend::decode);
        CHECK(differing(short_one->out, few.out, few.cu_q[b] * 4 * dim) == 0);
      }
    }
  }
}

// While a chain is recorded the driver refuses memory and waiting, and the backend what is copied in: a call
// that comes back does none of them.
TEST_CASE("[cuda] sdpa: a repeated call can be recorded, and other shapes between do not reach it") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(12);
  Problem many(random, DType::bf16, 4, 4, 64, {{70, 131}, {129, 64}}),
      few(random, DType::f32, 2, 1, 40, {{3, 200}});
  many.set_mask(random, MaskKind::document, false);
  many.args.dropout = {0.1f, 5, 6};
  few.set_mask(random, MaskKind::additive_bias, true);
  const Data dout(random, DType::bf16, {many.cu_q.back(), 4, 64});
  Gradients gradients(many);
  GpuProblem there(gpu, many), there_few(gpu, few);
  GpuCopy d(gpu, dout.view()), dq(gpu, gradients.dq.view()), dk(gpu, gradients.dk.view()),
      dv(gpu, gradients.dv.view());
  SdpaBackwardArgs backward;
  backward.forward = there.args;
  backward.dout = d.view();
  backward.dq = dq.view();
  backward.dk = dk.view();
  backward.dv = dv.view();
  const auto recorder = gpu.backend().recorder();
  const std::array<std::uint64_t, 1> key{1};
  std::vector<std::vector<float>> first;
  for (int round = 0; round < 8; ++round) {
    INFO("round ", round);
    there.poison();
    there_few.poison();
    for (Data* data : {&gradients.dq, &gradients.dk, &gradients.dv}) data->fill(NAN);
    for (GpuCopy* copy : {&dq, &dk, &dv}) copy->send();
    recorder->run(key, [&] {
      CHECK(sdpa(gpu, there.args) == SdpaBackend::flash);
      CHECK(sdpa(gpu, there_few.args) == SdpaBackend::decode);
      sdpa_backward(gpu, backward);
    });
    there.fetch();
    there_few.fetch();
    for (GpuCopy* copy : {&dq, &dk, &dv}) copy->fetch();
    std::vector<std::vector<float>> now;
    for (const Data* data : {&many.out, &few.out, &gradients.dq, &gradients.dk, &gradients.dv}) {
      auto& values = now.emplace_back();
      for (std::int64_t i = 0; i < data->size(); ++i) values.push_back(data->get(i));
    }
    if (round == 0) first = now;
    CHECK(now == first);
    if (round != 4) continue;
    for (const SdpaBackend backend : {SdpaBackend::flash, SdpaBackend::decode}) {
      Problem other(random, DType::bf16, 4, 4, 64, {{1, 9}, {4, 300}});
      check_backend(gpu, other, backend);
    }
  }
  CHECK(std::isfinite(first[0][0]));
}

TEST_CASE("[cuda] sdpa: the choice says what a GPU cannot do, and wrong arguments are refused by name") {
  if (!have_gpu()) return;
  ExecContext gpu = make_gpu_context();
  Random random(1);
  Problem problem(random, DType::bf16, 2, 2, 8, {{3, 5}});
  GpuProblem there(gpu, problem);
  const auto reason = [&](const SdpaArgs& args, SdpaBackend backend) {
    return supports(gpu, backend, args).reason;
  };
  CHECK(choose(gpu, there.args).backend == SdpaBackend::decode);
  CHECK(reason(there.args, SdpaBackend::math).empty());
  SdpaArgs dropped = there.args;
  dropped.dropout.p = 0.5f;
  CHECK(choose(gpu, dropped).backend == SdpaBackend::flash);
  CHECK(reason(dropped, SdpaBackend::decode) == "on a GPU it draws no dropout");
  {
    const SdpaScope scope(gpu, {SdpaBackend::decode});
    CHECK_THROWS_WITH_AS(sdpa(gpu, dropped), doctest::Contains("decode: on a GPU it draws no dropout"),
                         Error);
  }
  KvPool pool({1, 2, 8, DType::bf16}, 0, &gpu.backend());
  const KvSequence sequence(pool);
  const KvSequence* const sequences[] = {&sequence};
  SdpaArgs cached = there.args;
  cached.k = cached.v = TensorView();
  cached.cu_k = {};
  cached.cache = sequences;
  CHECK(reason(cached, SdpaBackend::flash).find("packed k and v") != std::string::npos);
  CHECK_THROWS_AS(sdpa(gpu, cached), Error);

  problem.set_mask(random, MaskKind::additive_bias, true);
  GpuProblem biased(gpu, problem);
  biased.run(SdpaBackend::flash);
  Gradients gradients(problem);
  const Data dout(random, DType::bf16, {3, 2, 8}), wide(random, DType::f32, {3, 2, 8});
  SdpaBackwardArgs good;
  good.forward = biased.args;
  const GpuCopy d(gpu, dout.view()), dq(gpu, gradients.dq.view()), dk(gpu, gradients.dk.view()),
      dv(gpu, gradients.dv.view()), dbias(gpu, gradients.dbias.view()), d_wide(gpu, wide.view());
  good.dout = d.view();
  good.dq = dq.view();
  good.dk = dk.view();
  good.dv = dv.view();
  good.dbias = dbias.view();
  const auto refusal = [&](const SdpaBackwardArgs& args) {
    const SdpaScope scope(gpu, {SdpaBackend::flash});
    const SdpaChoice choice = choose_backward(gpu, args);
    return choice.backend ? std::string() : choice.to_string();
  };
  CHECK(refusal(good).empty());
  SdpaBackwardArgs bad = good;
  bad.dout = d_wide.view();
  CHECK(refusal(bad).find("flash: on a GPU it takes dout in the dtype of q") != std::string::npos);
  CHECK(*choose_backward(gpu, bad).backend == SdpaBackend::math);
  bad = good;
  bad.dk.dtype = DType::bf16;
  CHECK(refusal(bad).find("gives dq, dk and dv in one") != std::string::npos);
  bad = good;
  bad.forward.mask.bias.shape[1] = bad.dbias.shape[1] = 1;  // still contiguous: the first head's alone
  CHECK(refusal(bad).find("gradient of a bias for every (B, H, Tq, Tk) alone") != std::string::npos);
  CHECK(choose_backward(gpu, good).to_string().find("decode: it has no backward pass") != std::string::npos);
}

}  // namespace
}  // namespace inkling
