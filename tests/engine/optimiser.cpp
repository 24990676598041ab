// Sums of squares and AdamW against f64 on every instruction set.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/exec_context.h"
#include "engine/training_ops.h"
#include "tests/random.h"

using namespace inkling;
using test::Random;

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr double kUlp = 0x1p-24;  // one rounding to f32, relative

}  // namespace

TEST_CASE("sum_of_squares is exact to f64") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t n : {0, 1, 7, 8, 9, 16384, 16385, 100003}) {
      Random random(13);
      const Floats from = random.normals(n, 1e20);
      double sum = 0;
      for (const float v : from) sum += double{v} * double{v};
      CHECK(sum_of_squares(context, from) == doctest::Approx(sum).epsilon(1e-13));
    }
  }
}

TEST_CASE("five steps of adamw equal the oracle's on every ISA") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t n : {1, 17, 16385}) {
      Random random(14);
      Floats parameter = random.normals(n), gradient, m(parameter.size()), v(parameter.size());
      Doubles p64(parameter.begin(), parameter.end()), m64(parameter.size()), v64(parameter.size());
      AdamWArgs args{parameter, {}, m, v, 0.01, 0.9, 0.999, 1e-8, 0.1, 0.5f, 1};
      for (args.step = 1; args.step <= 5; ++args.step) {
        gradient = random.normals(n);
        args.gradient = gradient;
        adamw(context, args);
        for (std::size_t i = 0; i < p64.size(); ++i) {
          reference::adamw(args, gradient[i], p64[i], m64[i], v64[i]);
        }
      }
      bool close = true;
      for (std::size_t i = 0; i < p64.size(); ++i) {
        // Five steps: two roundings of the parameter each, and of 0.01 · m/√v, which is below 0.02 where m
        // itself is off by a few roundings of the largest gradient, below 5, over √v ≥ 0.01: a small room.
        close &= std::fabs(parameter[i] - p64[i]) <= 10 * kUlp * (std::fabs(p64[i]) + 1);
        close &= std::fabs(m[i] - m64[i]) <= 10 * kUlp;
        close &= std::fabs(v[i] - v64[i]) <= 10 * kUlp * v64[i];
      }
      CHECK(close);
    }
  }
}
