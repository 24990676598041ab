// LayerNorm, softmax, log-softmax, activations and the embedding against the oracle on every ISA.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/draw_rule.h"
#include "engine/exec_context.h"
#include "engine/ops.h"
#include "tests/count_allocations.h"
#include "tests/engine/top_case.h"
#include "tests/random.h"

using namespace inkling;
using test::Random;

namespace {

TensorView view(std::vector<float>& data, std::int64_t rows, std::int64_t columns) {
  return TensorView(data.data(), DType::f32, {rows, columns});
}

constexpr std::int64_t kWidths[] = {1, 2, 15, 16, 17, 48, 192, 768, 1000};

}  // namespace

TEST_CASE("layer_norm equals the oracle, also far from zero") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t c : kWidths) {
      for (const float offset : {0.0f, 100.0f}) {
        Random random(static_cast<std::uint64_t>(c));
        auto x = random.normals(3 * c);
        for (float& v : x) v += offset;
        const auto gamma = random.normals(c), beta = random.normals(c);
        std::vector<float> out(x.size()), expected(static_cast<std::size_t>(c));
        const LayerNorm norm{gamma.data(), beta.data(), 1e-5f};
        layer_norm(context, {view(x, 3, c), {}, norm, view(out, 3, c)});
        for (std::int64_t m = 0; m < 3; ++m) {
          reference::layer_norm(
              std::span(x).subspan(static_cast<std::size_t>(m * c), static_cast<std::size_t>(c)), norm,
              expected);
          for (std::size_t i = 0; i < expected.size(); ++i) {
            // x − mean cancels: its error is that of x, 2^-24 · offset, over a standard deviation near 1 (but
            // c = 1 has none, and 1/√epsilon takes its place).
            const double gain = c == 1 ? 316.0 : c == 2 ? 50.0 : 4.0;
            const double allowed = (2e-6 + gain * offset * 0x1p-23) * (1.0 + std::fabs(gamma[i]));
            REQUIRE(std::fabs(out[static_cast<std::size_t>(m * c) + i] - expected[i]) <=
                    allowed + 1e-6 * std::fabs(expected[i]));
          }
        }
      }
    }
  }
}

TEST_CASE("softmax and log_softmax equal the oracle, and −inf and ±1e4 do no harm") {
  const float inf = std::numeric_limits<float>::infinity();
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t n : kWidths) {
      for (const double scale : {1.0, 30.0, 1e4}) {
        Random random(static_cast<std::uint64_t>(n));
        const auto x = random.normals(n, scale);
        auto p = x, lp = x, expected = x, log_expected = x;
        softmax(context, view(p, 1, n));
        log_softmax(context, view(lp, 1, n));
        reference::softmax(expected);
        reference::log_softmax(log_expected);
        double sum = 0.0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          sum += p[i];
          REQUIRE(std::fabs(p[i] - expected[i]) <= 2e-6);
          // lse = x − log p is rounded once, and so is the difference.
          REQUIRE(std::fabs(lp[i] - log_expected[i]) <=
                  2e-6 + 1.2e-7 * (std::fabs(x[i]) + 2 * std::fabs(lp[i])));
        }
        REQUIRE(sum == doctest::Approx(1.0).epsilon(1e-5));
      }
    }
    std::vector<float> dead(20, -inf), one(20, -inf);
    one[7] = 3.0f;
    softmax(context, view(dead, 1, 20));
    softmax(context, view(one, 1, 20));
    for (std::size_t i = 0; i < 20; ++i) {
      CHECK(dead[i] == 0.0f);
      CHECK(one[i] == (i == 7 ? 1.0f : 0.0f));
    }
    std::vector<float> logarithms(20, -inf), mixed(20, -inf);
    mixed[7] = 3.0f;
    log_softmax(context, view(logarithms, 1, 20));
    log_softmax(context, view(mixed, 1, 20));
    for (std::size_t i = 0; i < 20; ++i) {
      CHECK(std::isnan(logarithms[i]));
      CHECK(mixed[i] == (i == 7 ? 0.0f : -inf));
    }
  }
}

TEST_CASE("activations equal the oracle over the whole useful range") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 1, .isa = isa});
    for (const Activation act :
         {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::none}) {
      std::vector<float> x;
      for (double v = -30.0; v <= 30.0; v += 0.01) x.push_back(static_cast<float>(v));
      auto y = x;
      activate(context, view(y, 1, static_cast<std::int64_t>(y.size())), act);
      CAPTURE(isa_name(isa));
      CAPTURE(activation_name(act));
      for (std::size_t i = 0; i < x.size(); ++i) {
        CAPTURE(x[i]);
        REQUIRE(std::fabs(y[i] - reference::activate(x[i], act)) <= 4e-7 * (1.0 + std::fabs(x[i])));
      }
    }
  }
}

TEST_CASE("embed adds the token's column and the position's row") {
  const std::int64_t c = 70, vocab = 130, positions = 9;
  Random random(3);
  const auto table = random.normals(vocab * c);
  auto wpe = random.normals(positions * c);
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    const PackedMatrix packed = pack(context, {table.data(), DType::f32, c, vocab, 1, c}, WeightFormat::f32);
    const std::int32_t ids[] = {0, 129, 64, 63}, at[] = {0, 8, 3, 3};
    std::vector<float> out(static_cast<std::size_t>(4 * c));
    embed(context, {ids, at, &packed, {}, view(wpe, positions, c), view(out, 4, c)});
    for (std::size_t m = 0; m < 4; ++m) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(c); ++i) {
        const auto width = static_cast<std::size_t>(c);
        REQUIRE(out[m * width + i] == table[static_cast<std::size_t>(ids[m]) * width + i] +
                                          wpe[static_cast<std::size_t>(at[m]) * width + i]);
      }
    }
    std::vector<float> same(out.size()), rows = table;
    EmbedArgs by_rows{ids, at, nullptr, {}, view(wpe, positions, c), view(same, 4, c)};
    CHECK_THROWS_WITH_AS(embed(context, by_rows), "embed: token_table: expected a packed matrix, got null",
                         Error);
    by_rows.token_rows = view(rows, vocab, c);
    embed(context, by_rows);
    CHECK(same == out);
    const std::int32_t outside[] = {130}, zero[] = {0};
    std::vector<float> row(static_cast<std::size_t>(c));
    CHECK_THROWS_WITH_AS(
        embed(context, {outside, zero, &packed, {}, view(wpe, positions, c), view(row, 1, c)}),
        "embed: ids: expected indices below 130, got 130", Error);
  }
}

TEST_CASE("top is the head of a stable sort") {
  ExecContext context({.threads = 2});
  test::check_top([&](const std::vector<float>& x, std::int64_t rows, std::int64_t k) {
    std::vector<float> copy(x), values(static_cast<std::size_t>(rows * k));
    std::vector<std::int32_t> ids(values.size());
    top(context,
        {view(copy, rows, static_cast<std::int64_t>(x.size()) / rows), view(values, rows, k), ids.data()});
    return std::pair(values, ids);
  });
  std::vector<float> x(4), values(5);
  std::vector<std::int32_t> ids(5);
  CHECK_THROWS_AS(top(context, {view(x, 1, 4), view(values, 1, 5), ids.data()}), Error);
  const std::int64_t before = test::allocations;
  top(context, {view(x, 1, 4), view(values, 1, 3), ids.data()});
  CHECK(test::allocations == before);
}

TEST_CASE("a draw's masses are e^x in units of 2^-40, and its cuts and points are exact") {
  for (float x = 0.0f; x > -100.0f; x -= 0.0371f) {
    const double exact = std::exp(static_cast<double>(x)) * 0x1p40;
    CHECK(std::fabs(static_cast<double>(mass_of(x + 3.0f, 3.0f, 1.0f)) - exact) <= 0.5 + 3e-6 * exact);
  }
  CHECK(mass_of(-1.5f, -1.5f, 1e30f) == kFullMass);
  CHECK(mass_of(-INFINITY, 0.0f, 1e-4f) == 0);
  CHECK(mass_to_keep(0.0, 10) == 1);
  CHECK(mass_to_keep(0.5, 10) == 5);
  CHECK(mass_to_keep(1.0 - 0x1p-53, std::uint64_t{1} << 62) <= std::uint64_t{1} << 62);
  CHECK(least_mass(0.0) == 0);
  CHECK(least_mass(1.0) == kFullMass);
  CHECK(least_mass(1.5 * 0x1p-40) == 2);
  DrawSettings draw;
  draw.seed = 5, draw.position = 3, draw.sample = 2;
  const PhiloxWords words = philox({3, 2, 0, 0}, 5);
  const std::uint64_t random = std::uint64_t{words[0]} << 32 | words[1];
  CHECK(drawn_point(draw, 0) == 0);
  CHECK(drawn_point(draw, 1) == 0);
  CHECK(drawn_point(draw, std::uint64_t{1} << 32) == words[0]);
  CHECK(drawn_point(draw, std::uint64_t{1} << 62) == random >> 2);
  // 3 · 2^61: a carry between the halves, by the identity 3r · 2^61 / 2^64 = (r + 2r) / 8.
  CHECK(drawn_point(draw, std::uint64_t{3} << 61) ==
        random / 8 + (random / 4) + (random % 8 + 2 * (random % 4)) / 8);
}

TEST_CASE("draw refuses rows, settings and vocabularies that it cannot draw from") {
  ExecContext context({.device = Device::cpu, .threads = 2});
  std::vector<float> x(10, 0.0f);
  std::int32_t id = -1;
  const auto drawn = [&](auto&& change) {
    DrawSettings one;
    change(one);
    draw(context, {view(x, 2, 5), &one, 1, &id});
  };
  CHECK_THROWS_AS(drawn([](DrawSettings& d) { d.row = 2; }), Error);
  CHECK_THROWS_AS(drawn([](DrawSettings& d) { d.top_k = 6; }), Error);
  CHECK_THROWS_AS(draw(context, {view(x, 2, 5), nullptr, 1, &id}), Error);
  CHECK_THROWS_AS(draw(context, {view(x, 10, 0), nullptr, 0, nullptr}), Error);
  drawn([](DrawSettings& d) { d.row = 1, d.scale = 0.0f; });
  CHECK(id == 0);
}
