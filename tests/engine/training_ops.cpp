// Gradients and loss of a training step against f64 oracles on every instruction set, the oracles against
// finite differences, and every op's same bits on any number of threads.
#include "engine/training_ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/exec_context.h"
#include "tests/random.h"

using namespace inkling;
using test::Random;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr std::int64_t kWidths[] = {1, 2, 15, 16, 17, 48, 192, 768, 1000};
constexpr double kUlp = 0x1p-24;  // one rounding to f32, relative

TensorView view(Floats& data, std::int64_t rows, std::int64_t columns) {
  return TensorView(data.data(), DType::f32, {rows, columns});
}

std::span<const float> row_of(const Floats& data, std::int64_t row, std::int64_t width) {
  return std::span(data).subspan(static_cast<std::size_t>(row * width), static_cast<std::size_t>(width));
}

double norm_in_f64(const Doubles& x, const Floats& gamma, const Floats& dout, double epsilon) {
  const auto n = static_cast<double>(x.size());
  double mean = 0, variance = 0, sum = 0;
  for (const double v : x) mean += v / n;
  for (const double v : x) variance += (v - mean) * (v - mean) / n;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += double{dout[i]} * double{gamma[i]} * (x[i] - mean) / std::sqrt(variance + epsilon);
  }
  return sum;
}

struct Norm {
  std::int64_t m, c;
  Floats x, gamma, dout, dx, dgamma, dbeta;
  Norm(std::uint64_t seed, std::int64_t rows, std::int64_t width, float offset) : m(rows), c(width) {
    Random random(seed);
    x = random.normals(m * c);
    for (float& v : x) v += offset;
    gamma = random.normals(c);
    dout = random.normals(m * c);
    dx = random.normals(m * c);
    dgamma = random.normals(c);
    dbeta = random.normals(c);
  }
  void run(ExecContext& context) {
    layer_norm_backward(context, {view(x, m, c),
                                  {gamma.data(), nullptr, 1e-5f},
                                  view(dout, m, c),
                                  view(dx, m, c),
                                  dgamma.data(),
                                  dbeta.data()});
  }
};

// Every result of layer_norm_backward within what rounding can do to it. In units of kUlp: sums over a row
// are off by at most 32 of their Σ|·| (up to 250 terms a lane, a random walk of √250 steps, twice that); the
// mean by δ = 8 of the offset, which moves y = (x − mean)/σ by δ/σ.
void check_against_oracle(const Norm& before, const Norm& after, float offset) {
  const std::int64_t c = before.c;
  const auto width = static_cast<std::size_t>(c);
  Doubles dgamma(before.dgamma.begin(), before.dgamma.end()), dbeta(before.dbeta.begin(), before.dbeta.end());
  Doubles gamma_room(width), beta_room(width);
  for (std::size_t i = 0; i < width; ++i) {
    gamma_room[i] = beta_room[i] = 4 * kUlp * (std::fabs(dgamma[i]) + std::fabs(dbeta[i]) + 1);
  }
  const LayerNorm norm{before.gamma.data(), nullptr, 1e-5f};
  for (std::int64_t m = 0; m < before.m; ++m) {
    const auto x = row_of(before.x, m, c), dout = row_of(before.dout, m, c), dx0 = row_of(before.dx, m, c);
    Doubles dx(dx0.begin(), dx0.end());
    reference::layer_norm_backward(x, norm, dout, dx, dgamma, dbeta);
    double mean = 0, variance = 0, g_mean = 0, g_size = 0, gy_size = 0;
    for (const float v : x) mean += double{v} / static_cast<double>(c);
    for (const float v : x) variance += (v - mean) * (v - mean) / static_cast<double>(c);
    const double inverse = 1 / std::sqrt(variance + double{1e-5f}), shift = 8 * kUlp * offset * inverse;
    for (std::size_t i = 0; i < width; ++i) {
      const double g = dout[i] * before.gamma[i] / static_cast<double>(c);
      g_mean += g;
      g_size += std::fabs(g);
      gy_size += std::fabs(g * (x[i] - mean) * inverse);
    }
    for (std::size_t i = 0; i < width; ++i) {
      const double y = std::fabs((x[i] - mean) * inverse), g = std::fabs(dout[i] * before.gamma[i]);
      const double room = 32 * kUlp * (g + g_size + y * gy_size) + shift * (gy_size + y * std::fabs(g_mean));
      REQUIRE(std::fabs(row_of(after.dx, m, c)[i] - dx[i]) <=
              inverse * room + 2 * kUlp * std::fabs(dx[i]) + 1e-7);
      gamma_room[i] += std::fabs(dout[i]) * (16 * kUlp * (1 + y) + shift);
      beta_room[i] += 4 * kUlp * std::fabs(dout[i]);
    }
  }
  for (std::size_t i = 0; i < width; ++i) {
    REQUIRE(std::fabs(after.dgamma[i] - dgamma[i]) <= gamma_room[i]);
    REQUIRE(std::fabs(after.dbeta[i] - dbeta[i]) <= beta_room[i]);
  }
}

// A loss is max − logit, rounded twice, and the logarithm of a sum of V/4 terms a lane.
double loss_room(std::int64_t vocabulary, double loss) {
  return kUlp * (8 + std::sqrt(static_cast<double>(vocabulary) / 4) + 4 * std::fabs(loss));
}

}  // namespace

TEST_CASE("the oracles' gradients are finite differences") {
  constexpr double kStep = 1e-5;  // an error of step² · y‴/6 and 1e-16/step
  for (const Activation act :
       {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::none}) {
    for (double x = -6.05; x < 6; x += 0.1) {
      const double slope =
          (reference::activate(x + kStep, act) - reference::activate(x - kStep, act)) / (2 * kStep);
      REQUIRE(std::fabs(reference::activate_derivative(x, act) - slope) < 1e-9);
    }
  }

  Norm norm(5, 1, 7, 0.5f);
  Doubles dx(7), dgamma(7), dbeta(7), at(norm.x.begin(), norm.x.end());
  const double epsilon = 1e-5f;
  reference::layer_norm_backward(norm.x, {norm.gamma.data(), nullptr, 1e-5f}, norm.dout, dx, dgamma, dbeta);
  for (std::size_t i = 0; i < 7; ++i) {
    Doubles up = at, down = at;
    up[i] += kStep;
    down[i] -= kStep;
    const double slope = (norm_in_f64(up, norm.gamma, norm.dout, epsilon) -
                          norm_in_f64(down, norm.gamma, norm.dout, epsilon)) /
                         (2 * kStep);
    CHECK(std::fabs(dx[i] - slope) < 1e-8);
  }

  const Floats logits{0.5f, -1.0f, 2.0f, 0.25f};
  Doubles gradient(4), other(4);
  reference::cross_entropy(logits, 3, gradient);
  for (std::size_t i = 0; i < 4; ++i) {
    constexpr float kWide = 0x1p-10f;  // exact in f32; step²/6 is 1.6e-7
    Floats up = logits, down = logits;
    up[i] += kWide;
    down[i] -= kWide;
    const double slope =
        (reference::cross_entropy(up, 3, other) - reference::cross_entropy(down, 3, other)) / (2 * kWide);
    CHECK(std::fabs(gradient[i] - slope) < 2e-7);
  }
}

TEST_CASE("layer_norm_backward equals the oracle on every ISA, also far from zero") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t c : kWidths) {
      for (const float offset : {0.0f, 100.0f}) {
        CAPTURE(isa_name(isa));
        CAPTURE(c);
        const Norm before(static_cast<std::uint64_t>(c), 70, c, offset);
        Norm after = before;
        after.run(context);
        check_against_oracle(before, after, offset);
      }
    }
  }
}

TEST_CASE("activate_backward equals the oracle from −∞ to ∞") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 1, .isa = isa});
    Floats x{-INFINITY, -3e38f, -1e20f, -1e4f, -0.0f, 0.0f, 1e-40f, 1e4f, 1e20f, 3e38f, INFINITY};
    for (double v = -20.0; v <= 20.0; v += 0.01) x.push_back(static_cast<float>(v));
    const auto n = static_cast<std::int64_t>(x.size());
    for (const Activation act :
         {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu, Activation::none}) {
      CAPTURE(isa_name(isa));
      CAPTURE(activation_name(act));
      Floats dx(x.size(), 2.0f);
      activate_backward(context, {view(x, 1, n), act, view(dx, 1, n), {}});
      for (std::size_t i = 0; i < x.size(); ++i) {
        CAPTURE(x[i]);
        const double at = std::clamp(double{x[i]}, -50.0, 50.0);  // ∞ · 0 is the oracle's, not ours
        // y' is 1/2 + t/2 + x e/(1 + e)² 2u' with both terms below 1. e^−2u is off by 2|u| · 3 roundings and
        // exp's 2e-7 where its weight is largest, |u| ~ 1: 8e-7 in all, and dx is 2.
        REQUIRE(std::fabs(dx[i] - 2.0 * reference::activate_derivative(at, act)) <= 2e-6);
      }
      Floats again(x.size(), 2.0f), y(x.size(), NAN);
      activate_backward(context, {view(x, 1, n), act, view(again, 1, n), view(y, 1, n)});
      CHECK(again == dx);
      for (std::size_t i = 0; i < x.size(); ++i) {
        CAPTURE(x[i]);
        if (std::isinf(x[i])) continue;  // the activation's own value there is ∞ · 0
        REQUIRE(std::fabs(y[i] - reference::activate(x[i], act)) <= 4e-7 * (1.0 + std::fabs(x[i])));
      }
    }
  }
}

TEST_CASE("linear writes what its activation is applied to") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t m : {1, 3, 130}) {
      const std::int64_t k = 33, n = 70;
      Random random(11);
      Floats x = random.normals(m * k), w = random.normals(k * n), bias = random.normals(n);
      Floats residual = random.normals(m * n), plain(residual.size()), out(residual.size());
      Floats before(static_cast<std::size_t>(m * (n + 5)), 7.0f), after = before;
      const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, WeightFormat::f32);
      LinearArgs args;
      args.x = view(x, m, k);
      args.weight = &packed;
      args.bias = bias.data();
      args.out = view(plain, m, n);
      linear(context, args);
      args.activation = Activation::gelu_tanh;
      args.residual = view(residual, m, n);
      args.out = view(out, m, n);
      linear(context, args);
      const Floats without = out;
      args.pre_activation = view(after, m, n);
      args.pre_activation.stride[0] = n + 5;
      linear(context, args);
      CHECK(out == without);
      for (std::int64_t i = 0; i < m; ++i) {
        std::copy_n(plain.begin() + i * n, n, before.begin() + i * (n + 5));
      }
      CHECK(after == before);
      args.pre_activation = view(after, m, n - 1);
      CHECK_THROWS_AS(linear(context, args), Error);
    }
  }
}

TEST_CASE("embed_backward adds rows in order to tokens and positions") {
  const std::int64_t m = 90, c = 70, vocabulary = 13, length = 30;
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 3, .isa = isa});
    Random random(12);
    std::vector<std::int32_t> ids, positions;
    for (std::int64_t i = 0; i < m; ++i) {
      ids.push_back(static_cast<std::int32_t>(random.range(0, vocabulary - 1)));
      positions.push_back(static_cast<std::int32_t>(i % length));
    }
    Floats dout = random.normals(m * c), dtoken = random.normals(vocabulary * c),
           dposition = random.normals(length * c);
    Floats token = dtoken, position = dposition;
    for (std::size_t i = 0; i < static_cast<std::size_t>(m * c); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(c), j = i % static_cast<std::size_t>(c);
      token[static_cast<std::size_t>(ids[row]) * static_cast<std::size_t>(c) + j] += dout[i];
      position[static_cast<std::size_t>(positions[row]) * static_cast<std::size_t>(c) + j] += dout[i];
    }
    EmbedBackwardArgs args{ids, positions, view(dout, m, c), view(dtoken, vocabulary, c),
                           view(dposition, length, c)};
    embed_backward(context, args);
    CHECK(dtoken == token);
    CHECK(dposition == position);
    ids[3] = 13;
    CHECK_THROWS_WITH_AS(embed_backward(context, args),
                         "embed_backward: ids: expected indices below 13, got 13", Error);
  }
}

TEST_CASE("cross_entropy equals the oracle, ±1e4 does no harm, and −1 has neither loss nor gradient") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t n : {1, 2, 15, 16, 17, 65, 1000, 50257}) {
      for (const double size : {1.0, 30.0, 1e4}) {
        CAPTURE(isa_name(isa));
        CAPTURE(n);
        CAPTURE(size);
        Random random(static_cast<std::uint64_t>(n));
        Floats logits = random.normals(3 * n, size), losses(3, NAN), again(3, NAN);
        const Floats before = logits;
        const std::vector<std::int32_t> targets{static_cast<std::int32_t>(n - 1), -1, 0};
        cross_entropy(context, {view(logits, 3, n), targets, 0.0f, again});
        CHECK(logits == before);
        cross_entropy(context, {view(logits, 3, n), targets, 0.25f, losses});
        CHECK(losses == again);
        Doubles gradient(static_cast<std::size_t>(n));
        for (std::size_t m = 0; m < 3; ++m) {
          const auto row = static_cast<std::int64_t>(m);
          const double loss = reference::cross_entropy(row_of(before, row, n), targets[m], gradient);
          REQUIRE(std::fabs(losses[m] - loss) <= loss_room(n, loss));
          // p = e^(x − max)/Σ: exp is off by 2e-7, the difference by |ln p| roundings, p |ln p| < 0.37.
          for (std::size_t i = 0; i < gradient.size(); ++i) {
            REQUIRE(std::fabs(row_of(logits, row, n)[i] - 0.25 * gradient[i]) <= 0.25 * loss_room(n, 1.0));
          }
        }
      }
    }
  }
}

TEST_CASE("every training op has the same bits on any number of threads") {
  Floats first;
  double first_sum = 0;
  for (const int threads : {1, 2, 3}) {
    ExecContext context({.threads = threads});
    Random random(15);
    Norm norm(16, 150, 70, 1.0f);
    norm.run(context);
    Floats logits = random.normals(60 * 130), losses(60), x = random.normals(60 * 130);
    std::vector<std::int32_t> targets(60, 5), ids(60, 3), zeros(60, 0);
    cross_entropy(context, {view(logits, 60, 130), targets, 1.0f, losses});
    activate_backward(context, {view(x, 60, 130), Activation::gelu_tanh, view(logits, 60, 130), {}});
    Floats dtoken(4 * 130), dposition(130);
    embed_backward(context,
                   {ids, zeros, view(logits, 60, 130), view(dtoken, 4, 130), view(dposition, 1, 130)});
    Floats parameter = random.normals(50001), gradient = random.normals(50001), m(50001), v(50001);
    const double sum = sum_of_squares(context, gradient);
    adamw(context, {parameter, gradient, m, v});
    Floats all;
    for (const Floats* part :
         {&norm.dx, &norm.dgamma, &norm.dbeta, &logits, &losses, &dtoken, &dposition, &parameter, &m, &v}) {
      all.insert(all.end(), part->begin(), part->end());
    }
    if (threads == 1) first = all, first_sum = sum;
    CHECK(all == first);
    CHECK(sum == first_sum);
  }
}

TEST_CASE("no rows are no work, and wrong arguments are refused by name") {
  ExecContext context({.threads = 1});
  Floats a(12), b(12), losses(3);
  const TensorView none(a.data(), DType::f32, {0, 4}), x = view(a, 3, 4), y = view(b, 3, 4),
                                                       z = view(b, 4, 3);
  const float* gamma = a.data();
  const std::vector<std::int32_t> targets{0, 1, 2}, bad{0, 1, 4}, below{0, -2, 0};
  CHECK_NOTHROW(layer_norm_backward(context, {none, {gamma, nullptr, 1e-5f}, none, none}));
  CHECK_NOTHROW(activate_backward(context, {none, Activation::relu, none, {}}));
  CHECK_NOTHROW(embed_backward(context, {{}, {}, none, x, y}));
  CHECK_NOTHROW(cross_entropy(context, {none, {}, 1.0f, {}}));
  CHECK_NOTHROW(adamw(context, {}));
  CHECK(sum_of_squares(context, {}) == 0.0);

  const auto refused = [](const char* message, auto&& call) { CHECK_THROWS_WITH_AS(call(), message, Error); };
  refused("layer_norm_backward: norm: expected a weight, got null", [&] {
    layer_norm_backward(context, {x, {}, y, y});
  });
  refused("layer_norm_backward: dout: expected [3, 4], got [4, 3]", [&] {
    layer_norm_backward(context, {x, {gamma}, z, y});
  });
  refused("layer_norm_backward: dx: expected [3, 4], got [4, 3]", [&] {
    layer_norm_backward(context, {x, {gamma}, y, z});
  });
  refused("activate_backward: dx: expected [3, 4], got [4, 3]", [&] {
    activate_backward(context, {x, Activation::relu, z, {}});
  });
  refused("embed_backward: positions: expected 3 elements, got 0", [&] {
    embed_backward(context, {targets, {}, x, y, y});
  });
  refused("embed_backward: dtoken: expected [4, 4], got [4, 3]", [&] {
    embed_backward(context, {targets, targets, x, z, y});
  });
  refused("cross_entropy: targets: expected columns of logits or -1, got 4 of 4", [&] {
    cross_entropy(context, {x, bad, 0.0f, losses});
  });
  refused("cross_entropy: targets: expected columns of logits or -1, got -2 of 4", [&] {
    cross_entropy(context, {x, below, 0.0f, losses});
  });
  refused("cross_entropy: losses: expected 3 elements, got 0", [&] {
    cross_entropy(context, {x, targets, 0.0f, {}});
  });
  refused("adamw: m: expected 12 elements, got 3", [&] { adamw(context, {a, b, losses, b}); });
  refused("adamw: step: expected at least 1, got 0", [&] {
    adamw(context, {a, b, a, b, 0.1, 0.9, 0.9, 1e-8, 0, 1, 0});
  });
  refused("adamw: beta2: expected a rate in [0, 1), got 1.000000", [&] {
    adamw(context, {a, b, a, b, 0.1, 0.9, 1.0});
  });
}
