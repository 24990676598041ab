// sdpa() and its gradients for random problems: what must hold whatever the shape. Each case has a seed of
// its own, which a failure names; the masks, dtypes, dropout and instruction sets take turns, so that every
// pair of them comes up, and the rest is drawn.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/attention/gradients.h"
#include "tests/attention/on_gpu.h"

namespace inkling {
namespace {

using test::Data;
using test::differentiate;
using test::Gradients;
using test::kDtypes;
using test::kMasks;
using test::Problem;
using test::Random;

constexpr int kThreads = 3;  // contexts of 1, 2 and 3 threads

/// One context for each instruction set and number of threads: bits are compared within an instruction set.
class Contexts {
 public:
  Contexts() {
    for (const Isa isa : test::attention_isas()) {
      auto& row = of_.emplace_back();
      for (int threads = 1; threads <= kThreads; ++threads) {
        row.push_back(std::make_unique<ExecContext>(
            ExecOptions{.device = Device::cpu, .threads = threads, .isa = isa}));
      }
    }
  }
  const std::vector<std::unique_ptr<ExecContext>>& turn(std::size_t i) const { return of_[i % of_.size()]; }

 private:
  std::vector<std::vector<std::unique_ptr<ExecContext>>> of_;
};

/// How large problems get: the oracle's work, and with it the time of a test, is bounded.
struct Bounds {
  std::int64_t few, many,
      far;  ///< queries of a short sequence; tokens of a long one; keys of a very long one
  std::int64_t dim;
  std::int64_t work;  ///< H · D · Σ Tq · Tk
};

using Lengths = std::vector<std::pair<std::int64_t, std::int64_t>>;

Lengths draw_lengths(Random& random, const Bounds& most, std::int64_t width) {
  const bool short_ones = random.range(0, 1) == 0;
  Lengths lengths;
  for (std::int64_t b = random.range(1, 4); b > 0; --b) {
    lengths.emplace_back(random.range(0, short_ones ? most.few : most.many),
                         random.range(0, random.range(0, 7) == 0 ? most.far : most.many));
  }
  const auto work = [&] {
    std::int64_t scores = 0;
    for (const auto& [queries, keys] : lengths) scores += queries * keys;
    return scores * width;
  };
  while (work() > most.work) {
    auto& longest =
        *std::ranges::max_element(lengths, {}, [](const auto& pair) { return pair.first * pair.second; });
    longest.first > longest.second ? longest.first /= 2 : longest.second /= 2;
  }
  return lengths;
}

std::unique_ptr<Problem> draw_problem(std::uint64_t seed, const Bounds& most, DType dtype) {
  Random random(seed);
  const std::int64_t kv_heads = random.range(1, 3), heads = kv_heads * random.range(1, 3);
  const std::int64_t dim =
      random.range(1, random.range(0, 2) == 0 ? most.dim : std::min<std::int64_t>(most.dim, 70));
  auto problem =
      std::make_unique<Problem>(random, dtype, heads, kv_heads, dim, draw_lengths(random, most, heads * dim));
  Mask& mask = problem->args.mask;
  problem->set_mask(random, kMasks[seed % std::size(kMasks)], random.range(0, 1) == 0);
  if (mask.kind == MaskKind::document || mask.kind == MaskKind::sliding_window) {
    const auto reach = [&] { return random.range(0, 2) == 0 ? kUnlimited : random.range(0, most.many); };
    mask.left = reach();
    mask.right = reach();
  }
  if (seed / std::size(kMasks) % 2 == 0) {
    problem->args.dropout = {static_cast<float>(random.uniform() * 0.9), random.next(),
                             static_cast<std::uint32_t>(random.next())};
  }
  if (random.range(0, 2) == 0) {
    problem->args.scale =
        static_cast<float>((0.5 + 1.5 * random.uniform()) / std::sqrt(static_cast<double>(dim)));
  }
  return problem;
}

std::string text_of(const Problem& p) {
  std::string text = std::string(dtype_name(p.dtype)) + " H=" + std::to_string(p.heads) + "/" +
                     std::to_string(p.kv_heads) + " D=" + std::to_string(p.dim) + " " +
                     std::string(mask_kind_name(p.args.mask.kind)) +
                     " dropout=" + std::to_string(p.args.dropout.p);
  for (std::size_t b = 0; b + 1 < p.cu_q.size(); ++b) {
    text += " " + std::to_string(p.cu_q[b + 1] - p.cu_q[b]) + "x" + std::to_string(p.cu_k[b + 1] - p.cu_k[b]);
  }
  return text;
}

DType dtype_of_turn(std::uint64_t seed) {
  return kDtypes[seed / (2 * std::size(kMasks)) % std::size(kDtypes)];
}

TEST_CASE("random problems: every backend against f64, with the same bits for any threads") {
  constexpr Bounds kMost{5, 150, 1100, 256, 1'500'000};
  const Contexts contexts;
  int decoded = 0;
  for (std::uint64_t seed = 0; seed < 252; ++seed) {
    const auto p = draw_problem(seed, kMost, dtype_of_turn(seed));
    if (seed % 4 == 0) p->give_out_in(DType::f32);
    INFO("seed ", seed, ": ", text_of(*p));
    for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
      Data first;
      for (const auto& context : contexts.turn(seed)) {
        INFO(isa_name(context->isa()), " ", sdpa_backend_name(backend), " ", context->pool().size(),
             " threads");
        const SdpaScope scope(*context, SdpaPolicy{{backend}, SIZE_MAX});
        if (!supports(*context, backend, p->args).ok) {
          REQUIRE(backend == SdpaBackend::decode);
          continue;
        }
        p->out.fill(NAN);
        p->lse.fill(NAN);
        REQUIRE(sdpa(*context, p->args) == backend);
        if (context->pool().size() > 1) {
          CHECK(p->out.same_bits(first));
          continue;
        }
        decoded += backend == SdpaBackend::decode ? 1 : 0;
        first = p->out.copy();
        const auto [out, lse] = p->errors();
        CHECK(out < test::tolerance(*p));
        CHECK(lse < 1e-5);
      }
    }
  }
  CHECK(decoded > 60);
}

TEST_CASE("random problems: the gradients of flash are those of math, with the same bits for any threads") {
  constexpr Bounds kMost{5, 150, 700, 256, 1'000'000};
  const Contexts contexts;
  for (std::uint64_t seed = 1000; seed < 1168; ++seed) {
    const auto p = draw_problem(seed, kMost, dtype_of_turn(seed));
    p->give_out_in(
        DType::f32);  // δ of a rounded out is off by what the shape says; sdpa_backward.cpp has that
    INFO("seed ", seed, ": ", text_of(*p));
    Random random(seed);
    const Data dout(random, p->dtype, {p->cu_q.back(), p->heads, p->dim});
    const auto& row = contexts.turn(seed);
    const SdpaScope scope(*row.front(), {SdpaBackend::flash});
    sdpa(*row.front(), p->args);
    std::vector<Gradients> math, flash;
    for (const auto& context : row) {
      math.push_back(differentiate(*context, *p, dout, SdpaBackend::math));
      flash.push_back(differentiate(*context, *p, dout, SdpaBackend::flash));
    }
    for (Data Gradients::*gradient : {&Gradients::dq, &Gradients::dk, &Gradients::dv, &Gradients::dbias}) {
      if (gradient == &Gradients::dbias && p->args.mask.kind != MaskKind::additive_bias) continue;
      CHECK(test::difference(flash[0].*gradient, math[0].*gradient) < 1e-4);
      for (std::size_t t = 1; t < row.size(); ++t) {
        CHECK((math[t].*gradient).same_bits(math[0].*gradient));
        CHECK((flash[t].*gradient).same_bits(flash[0].*gradient));
      }
    }
  }
}

TEST_CASE("random problems: the gradients of math are those of finite differences") {
  constexpr Bounds kMost{3, 6, 9, 5, 1'000};
  ExecContext context = test::make_context(Isa::portable, 1);
  const SdpaScope scope(context, {SdpaBackend::math});
  for (std::uint64_t seed = 2000; seed < 2070; ++seed) {
    const auto p = draw_problem(seed, kMost, DType::f32);
    INFO("seed ", seed, ": ", text_of(*p));
    Random random(seed);
    const Data dout(random, DType::f32, {p->cu_q.back(), p->heads, p->dim});
    test::check_by_differences(context, *p, dout, 1);
  }
}

TEST_CASE("[cuda] random problems: every backend against f64, in every layout") {
  if (!test::have_gpu()) return;
  constexpr Bounds kMost{5, 300, 1100, 256, 1'500'000};
  ExecContext gpu = test::make_gpu_context();
  int decoded = 0;
  for (std::uint64_t seed = 3000; seed < 3168; ++seed) {
    const auto p = draw_problem(seed, kMost, dtype_of_turn(seed));
    if (seed % 4 == 0) p->give_out_in(DType::f32);
    const test::Layout layout = test::kLayouts[seed / 4 % 4];
    INFO("seed ", seed, ": ", text_of(*p), " ", test::layout_name(layout));
    for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
      INFO(sdpa_backend_name(backend));
      test::GpuProblem there(gpu, *p, layout);
      if (!supports(gpu, backend, there.args).ok) {
        REQUIRE(backend == SdpaBackend::decode);
        continue;
      }
      there.run(backend);
      decoded += backend == SdpaBackend::decode ? 1 : 0;
      const auto [out, lse] = p->errors();
      const auto [out_bound, lse_bound] = test::bounds(*p);
      const bool exact = backend == SdpaBackend::math;
      // The scale is rounded to f32, and so is the result.
      CHECK(out <= (exact ? (test::unit(p->args.out.dtype) + 4e-6) * p->largest_value() /
                                (1 - double{p->args.dropout.p})
                          : out_bound));
      CHECK(lse <= (exact ? 4e-6 : lse_bound));
    }
  }
  CHECK(decoded > 25);
}

TEST_CASE("[cuda] random problems: the gradients of math are the CPU's, and those of flash near them") {
  if (!test::have_gpu()) return;
  constexpr Bounds kMost{5, 200, 700, 256, 1'000'000};
  ExecContext gpu = test::make_gpu_context(), cpu = test::make_context(supported_isas().back(), 2);
  const SdpaScope scope(cpu, {SdpaBackend::math});
  for (std::uint64_t seed = 4000; seed < 4126; ++seed) {
    const auto p = draw_problem(seed, kMost, dtype_of_turn(seed));
    p->give_out_in(DType::f32);
    INFO("seed ", seed, ": ", text_of(*p));
    Random random(seed);
    const Data dout(random, p->dtype, {p->cu_q.back(), p->heads, p->dim});
    const Gradients want = (sdpa(cpu, p->args), differentiate(cpu, *p, dout, SdpaBackend::math));
    Gradients math(*p), flash(*p);
    test::GpuProblem there(gpu, *p, test::kLayouts[seed % 4]);
    there.run(SdpaBackend::math);
    there.differentiate(dout, math, SdpaBackend::math);
    const bool biased = p->args.mask.kind == MaskKind::additive_bias;
    const TensorView& bias = p->args.mask.bias;
    const bool shared = biased && (bias.shape[0] < p->batch() || bias.shape[1] < p->heads);
    if (!shared) {
      there.run(SdpaBackend::flash);
      there.differentiate(dout, flash);
    }
    for (Data Gradients::*gradient : {&Gradients::dq, &Gradients::dk, &Gradients::dv, &Gradients::dbias}) {
      if (gradient == &Gradients::dbias && !biased) continue;
      // The CPU adds the gradient of a bias in f32.
      CHECK(test::difference(math.*gradient, want.*gradient) < (gradient == &Gradients::dbias ? 1e-5 : 1e-6));
      if (shared) continue;
      const double allowed = p->dtype == DType::f32 ? 2e-5 : 2 * test::unit(p->dtype);
      CHECK(test::distance(flash.*gradient, want.*gradient) <= allowed);
    }
  }
}

}  // namespace
}  // namespace inkling
