// The gradients of a whole model: PyTorch's, the slope of the loss, and those of each sequence alone.
#include <doctest/doctest.h>

#include "tests/model/training_case.h"

namespace inkling {

using namespace test;

TEST_CASE("[golden] loss and gradients are PyTorch's, dropout included") {
  for (std::size_t index = 0; index < golden()["cases"].size(); ++index) {
    const Case c(index);
    CAPTURE(c.data["name"].get<std::string>());
    const TrainOptions options = options_of(c.data);
    for (const Isa isa : supported_isas()) {
      CAPTURE(isa_name(isa));
      ExecContext context({.threads = 2, .isa = isa});
      Bench bench(context, c);
      const double loss = bench.pass.accumulate(c.batches()[0], 1.0f, {options.dropout, options.seed, 5});
      CHECK(loss == doctest::Approx(c.data["loss"].get<double>()).epsilon(1e-6));
      for (const NamedTensor& t : bench.layout.named(Bench::floats(bench.gradients))) {
        CAPTURE(t.name);
        const auto want = c.data["gradients"][t.name].get<std::vector<float>>();
        const std::span got(static_cast<const float*>(t.view.data), static_cast<std::size_t>(t.view.numel()));
        REQUIRE(want.size() == got.size());
        // f32 through two layers and back: some hundred roundings of 2^-24 each.
        CHECK(distance(got, want) <= 2e-5 * norm(want));
      }
    }
  }
}

TEST_CASE("the gradient is the slope of the loss") {
  const Case c(0);
  ExecContext context({.threads = 1});
  Bench bench(context, c);
  const TrainingBatch batch = c.batches()[0];
  bench.pass.accumulate(batch, 1.0f);
  const std::vector<float> gradient = bench.gradient();
  const std::vector<float> weights(Bench::floats(bench.weights),
                                   Bench::floats(bench.weights) + bench.layout.size());
  const double length = norm(gradient), step = 2e-3;
  const auto loss_at = [&](double way) {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      Bench::floats(bench.weights)[i] =
          static_cast<float>(double{weights[i]} + way * double{gradient[i]} / length);
    }
    return bench.pass.loss(batch);
  };
  // Third-order terms are step² of it; f32 losses of about 40 carry 1e-5 into a difference of 0.1.
  CHECK((loss_at(step) - loss_at(-step)) / (2 * step) == doctest::Approx(length).epsilon(2e-3));
}

// Central differences at steps h and h/2 and what extrapolation (Richardson 1911) makes of them, whose error
// is of order h⁴; the bound takes the h² term that it removes instead, and the roundings of two f32 losses
// over a step.
TEST_CASE(
    "the gradient of every parameter is the slope of the loss along random directions and single weights") {
  constexpr double kStep = 0.02;
  for (std::size_t index = 0; index < golden()["cases"].size(); ++index) {
    const Case c(index);
    CAPTURE(c.data["name"].get<std::string>());
    ExecContext context({.threads = 1});
    Bench bench(context, c);
    const TrainingBatch batch = c.batches()[0];
    const double rounding = bench.pass.accumulate(batch, 1.0f) * 0x1p-24;
    for (const NamedTensor& t : bench.layout.named(Bench::floats(bench.gradients))) {
      CAPTURE(t.name);
      const auto size = static_cast<std::size_t>(t.view.numel());
      const std::span gradient(static_cast<const float*>(t.view.data), size);
      const std::span weights(
          Bench::floats(bench.weights) + (gradient.data() - Bench::floats(bench.gradients)), size);
      const std::vector<float> before(weights.begin(), weights.end());
      Random random(99);
      for (int trial = 0; trial < 6; ++trial) {
        CAPTURE(trial);
        std::vector<float> way(size);
        if (trial < 3) {
          way = random.normals(t.view.numel());
        } else {
          way[static_cast<std::size_t>(random.range(0, static_cast<int>(size) - 1))] = 1.0f;
        }
        double along = 0;
        for (std::size_t i = 0; i < size; ++i) along += double{way[i]} / norm(way) * double{gradient[i]};
        const auto loss_at = [&](double step) {
          for (std::size_t i = 0; i < size; ++i) {
            weights[i] = static_cast<float>(double{before[i]} + step * double{way[i]} / norm(way));
          }
          return bench.pass.loss(batch);
        };
        const auto slope = [&](double step) { return (loss_at(step) - loss_at(-step)) / (2 * step); };
        const double coarse = slope(kStep), fine = slope(kStep / 2);
        const double bound = std::fabs(coarse - fine) + 4 * rounding / kStep;
        CHECK(std::fabs((4 * fine - coarse) / 3 - along) <= bound);
        // A hundredth of what such a slope is of: this cannot be had by a step that is too long or too short.
        CHECK(bound <= 0.01 * norm(gradient) / std::sqrt(static_cast<double>(size)));
        std::ranges::copy(before, weights.begin());
      }
    }
  }
}

TEST_CASE("packed sequences train as each of them alone") {
  const Case c(0);
  ExecContext context({.threads = 2});
  const TrainingBatch packed = c.batches()[0];
  Bench whole(context, c), parts(context, c);
  const double loss = whole.pass.accumulate(packed, 1.0f);
  double sum = 0;
  for (std::size_t b = 0; b + 1 < packed.cu_seqlens.size(); ++b) {
    const auto begin = packed.cu_seqlens[b], count = packed.cu_seqlens[b + 1] - begin;
    TrainingBatch one;
    one.add(
        std::span(packed.ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)),
        std::span(packed.targets).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)));
    sum += parts.pass.accumulate(one, 1.0f);
  }
  // The losses of rows are equal bit for bit, and their f64 sums all but so; weights' gradients add up the
  // rows in the same order, but from a rounded partial sum.
  CHECK(sum == doctest::Approx(loss).epsilon(1e-14));
  CHECK(distance(whole.gradient(), parts.gradient()) <= 1e-6 * norm(whole.gradient()));
}

TEST_CASE("a gradient replaces what was there, if asked to, and that of no tokens is zero") {
  for (std::size_t index = 0; index < golden()["cases"].size(); ++index) {
    const Case c(index);
    CAPTURE(index);
    ExecContext context({.threads = 2});
    Bench fresh(context, c), again(context, c);
    const std::vector<TrainingBatch> batches = c.batches();
    fresh.pass.accumulate(batches[0], 1.0f);
    again.pass.accumulate(batches[1], 1.0f);
    again.pass.accumulate(batches[0], 1.0f, {}, Accumulation::replace);
    CHECK(again.gradient() == fresh.gradient());
    CHECK(again.pass.accumulate({}, 1.0f, {}, Accumulation::replace) == 0.0);
    CHECK(norm(again.gradient()) == 0.0);
  }
}

TEST_CASE("a sequence's loss in a pack has the bits of its loss alone") {
  const Case c(1);
  ExecContext context({.threads = 2});
  Bench bench(context, c);
  const TrainingBatch packed = c.batches()[0];
  REQUIRE(packed.cu_seqlens.size() == 4);
  for (std::size_t b = 0; b + 1 < packed.cu_seqlens.size(); ++b) {
    const auto begin = static_cast<std::size_t>(packed.cu_seqlens[b]),
               count = static_cast<std::size_t>(packed.cu_seqlens[b + 1]) - begin;
    const auto targets = std::span(packed.targets).subspan(begin, count);
    TrainingBatch one, among = packed;  // the same targets, and no others
    one.add(std::span(packed.ids).subspan(begin, count), targets);
    std::ranges::fill(among.targets, kNoTarget);
    std::ranges::copy(targets, among.targets.begin() + static_cast<std::ptrdiff_t>(begin));
    CHECK(bench.pass.loss(among) == bench.pass.loss(one));
  }
}

TEST_CASE("logits made in blocks of rows give the loss and the gradient of logits made at once") {
  const Case c(0);
  ModelConfig config = c.config;
  config.n_layer = 1;
  config.vocab_size = std::int64_t{1} << 19;  // 2^24 logits at a time are 32 rows, and the least is 64
  ExecContext context({.threads = 2});
  const ParameterLayout layout(config);
  const auto bytes = static_cast<std::size_t>(layout.size()) * sizeof(float);
  const Buffer weights(bytes), whole(bytes), parts(bytes);
  initialise(layout, config, 3, Bench::floats(weights));
  std::memset(whole.data(), 0, bytes);
  std::memset(parts.data(), 0, bytes);
  const auto pass_into = [&](const Buffer& gradients) {
    return TrainingPass(context, config, layout.tensors(Bench::floats(weights)),
                        layout.tensors(Bench::floats(gradients)));
  };
  TrainingPass packed = pass_into(whole), alone = pass_into(parts);
  TrainingBatch batch;  // 10 sequences of 15 tokens: blocks of 50 rows, which end within sequences
  double sum = 0;
  for (std::int32_t s = 0; s < 10; ++s) {
    Ids ids(15), targets(15);
    for (std::int32_t i = 0; i < 15; ++i) {
      ids[static_cast<std::size_t>(i)] = (s * 77'777 + i * 31'337) % (1 << 19);
      targets[static_cast<std::size_t>(i)] = (s * 12'345 + i * 54'321 + 7) % (1 << 19);
    }
    batch.add(ids, targets);
    TrainingBatch one;
    one.add(ids, targets);
    sum += alone.accumulate(one, 1.0f);
  }
  CHECK(packed.accumulate(batch, 1.0f) == doctest::Approx(sum).epsilon(1e-12));
  CHECK(packed.nbytes() < std::size_t{64} * (1 << 19) * sizeof(float) + (1 << 20));  // never all 150 rows
  const auto floats = [&](const Buffer& buffer) {
    return std::span<const float>(Bench::floats(buffer), static_cast<std::size_t>(layout.size()));
  };
  CHECK(norm(floats(parts)) > 0);
  CHECK(distance(floats(whole), floats(parts)) <= 1e-5 * norm(floats(parts)));
}

TEST_CASE("an empty sequence changes nothing") {
  const Case c(0);
  ExecContext context({.threads = 1});
  TrainingBatch batch = c.batches()[2];
  Bench plain(context, c), with(context, c);
  const double loss = plain.pass.accumulate(batch, 1.0f);
  batch.cu_seqlens.insert(batch.cu_seqlens.begin() + 1, batch.cu_seqlens[1]);
  CHECK(with.pass.accumulate(batch, 1.0f) == loss);
  CHECK(plain.gradient() == with.gradient());
}

}  // namespace inkling
