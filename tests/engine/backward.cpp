// Gradients of a linear layer against the naive oracle on every instruction set, the same bits on any number
// of threads; dropout against its own rule.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/exec_context.h"
#include "engine/philox.h"
#include "engine/training_ops.h"
#include "tests/random.h"
#include "tests/worse.h"

using namespace inkling;
using test::Random;

namespace {

TensorView view(std::vector<float>& data, std::int64_t rows, std::int64_t columns) {
  return TensorView(data.data(), DType::f32, {rows, columns});
}

struct Layer {
  std::int64_t m, k, n;
  std::vector<float> x, w, dout, dx, dw, db;
  Layer(Random& random, std::int64_t rows, std::int64_t inputs, std::int64_t outputs)
      : m(rows),
        k(inputs),
        n(outputs),
        x(random.normals(m * k)),
        w(random.normals(k * n)),
        dout(random.normals(m * n)),
        dx(x.size(), NAN),
        dw(random.normals(k * n)),
        db(random.normals(n)) {}
  void run(ExecContext& context, WeightFormat format = WeightFormat::f32) {
    LinearBackwardArgs args;
    args.x = view(x, m, k);
    args.weight = view(w, k, n);
    args.dout = view(dout, m, n);
    args.dx = view(dx, m, k);
    args.dweight = view(dw, k, n);
    args.dbias = db.data();
    args.format = format;
    linear_backward(context, args);
  }
};

double worst(const std::vector<float>& got, const std::vector<float>& want) {
  double most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    most = test::worse(most, std::fabs(double{got[i]} - double{want[i]}));
  }
  return most;
}

// A sum of n products of N(0, 1) passes through partial sums of about √i and rounds each by up to 2^-24 of
// it: a standard deviation of 2^-24 · n / √6. Eight of them, and some room where n is small.
double tolerance(std::int64_t terms) {
  return 2e-7 * static_cast<double>(terms + 8);
}

}  // namespace

TEST_CASE("a linear layer's gradients equal the oracle's on every ISA and awkward shape") {
  const std::int64_t shapes[][3] = {{1, 1, 1},      {2, 5, 7},   {17, 64, 130},  {65, 100, 33},
                                    {128, 31, 192}, {257, 9, 3}, {300, 520, 32}, {270, 40, 528}};
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    Random random(7);
    for (const auto& [m, k, n] : shapes) {
      CAPTURE(isa_name(isa));
      CAPTURE(m);
      CAPTURE(k);
      CAPTURE(n);
      Layer layer(random, m, k, n);
      std::vector<float> dx(layer.dx.size()), dw = layer.dw, db = layer.db;
      reference::linear_backward(layer.x, layer.w, layer.dout, m, dx, dw, db);
      layer.run(context);
      CHECK(worst(layer.dx, dx) < tolerance(n));
      CHECK(worst(layer.dw, dw) < tolerance(m));
      CHECK(worst(layer.db, db) < tolerance(m));
    }
  }
}

TEST_CASE("a linear layer's gradients have the same bits on any number of threads") {
  const std::int64_t shapes[][3] = {{150, 70, 200}, {300, 70, 192}};  // packed on the way, and read in place
  for (const auto& [m, k, n] : shapes) {
    CAPTURE(n);
    std::vector<float> dx, dw, db;
    for (const int threads : {1, 2, 3}) {
      ExecContext context({.threads = threads});
      Random random(8);
      Layer layer(random, m, k, n);
      layer.run(context);
      if (threads == 1) dx = layer.dx, dw = layer.dw, db = layer.db;
      CHECK(layer.dx == dx);
      CHECK(layer.dw == dw);
      CHECK(layer.db == db);
    }
  }
}

TEST_CASE("gradients of strided views are right, and what lies between their rows stays as it is") {
  ExecContext context({.threads = 2});
  Random random(10);
  for (int round = 0; round < 20; ++round) {
    const std::int64_t m = random.range(1, 140), k = random.range(1, 140), n = random.range(1, 140);
    const std::int64_t gap = random.range(1, 20);
    auto x = random.normals(m * (k + gap)), dout = random.normals(m * (n + gap));
    auto transposed = random.normals(n * (k + gap));
    std::vector<float> dx(x.size(), 7.0f), dw(static_cast<std::size_t>(k * (n + gap)), 3.0f);
    const auto strided = [&](std::vector<float>& data, std::int64_t rows, std::int64_t columns) {
      TensorView v = view(data, rows, columns);
      v.stride[0] = columns + gap;
      return v;
    };
    LinearBackwardArgs args;
    args.x = strided(x, m, k);
    args.weight = view(transposed, k, n);
    args.weight.stride = {1, k + gap, 0, 0};
    args.dout = strided(dout, m, n);
    args.dx = strided(dx, m, k);
    args.dweight = strided(dw, k, n);
    linear_backward(context, args);

    const auto at = [](const TensorView& v, std::int64_t i, std::int64_t j) {
      return double{static_cast<const float*>(v.data)[i * v.stride[0] + j * v.stride[1]]};
    };
    double most = 0;
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t a = 0; a < k + gap; ++a) {
        double want = a < k ? 0 : 7;
        for (std::int64_t j = 0; a < k && j < n; ++j) want += at(args.dout, i, j) * at(args.weight, a, j);
        most = test::worse(most, std::fabs(at(args.dx, i, a) - want));
      }
    }
    for (std::int64_t a = 0; a < k; ++a) {
      for (std::int64_t j = 0; j < n + gap; ++j) {
        double want = 3;
        for (std::int64_t i = 0; j < n && i < m; ++i) want += at(args.x, i, a) * at(args.dout, i, j);
        most = test::worse(most, std::fabs(at(args.dweight, a, j) - want));
      }
    }
    CHECK(most < tolerance(std::max(m, n)));
  }
}

TEST_CASE("with no outputs dx is zero") {
  ExecContext context({.threads = 1});
  std::vector<float> dx(12, NAN), none(1);
  LinearBackwardArgs args;
  args.dout = view(none, 3, 0);
  args.weight = view(none, 4, 0);
  args.dx = view(dx, 3, 4);
  linear_backward(context, args);
  CHECK(dx == std::vector<float>(12, 0.0f));
}

TEST_CASE("what is not asked for is neither needed nor written, and wrong shapes are refused by name") {
  ExecContext context({.threads = 1});
  Random random(9);
  Layer layer(random, 3, 4, 5);
  LinearBackwardArgs args;
  args.dout = view(layer.dout, 3, 5);
  CHECK_NOTHROW(linear_backward(context, args));
  args.dx = view(layer.dx, 3, 4);
  CHECK_THROWS_WITH_AS(linear_backward(context, args),
                       "linear_backward: weight: expected (K, 5) in f32 or as activations are, got [] in f32",
                       Error);
  args.weight = view(layer.w, 4, 5);
  CHECK_NOTHROW(linear_backward(context, args));
  args.dx.shape[1] = 3;
  CHECK_THROWS_WITH_AS(linear_backward(context, args), "linear_backward: dx: expected [3, 4], got [3, 3]",
                       Error);
  args.dx = {};
  args.dweight = view(layer.dw, 4, 5);
  CHECK_THROWS_AS(linear_backward(context, args), Error);
  args.format = WeightFormat::int8;
  CHECK_THROWS_WITH_AS(linear_backward(context, args),
                       "linear_backward: format: expected f32 or bf16, got int8", Error);
  args.format = WeightFormat::f32;
  args.x = view(layer.x, 2, 4);
  CHECK_THROWS_WITH_AS(linear_backward(context, args), "linear_backward: x: expected [3, 4], got [2, 4]",
                       Error);
}

TEST_CASE("bf16 products are exact on what bf16 holds, and off by its roundings elsewhere") {
  for (const Isa isa : supported_isas()) {
    CAPTURE(isa_name(isa));
    ExecContext context({.threads = 2, .isa = isa});
    Random random(11);
    for (const auto& [m, k, n] :
         std::vector<std::array<std::int64_t, 3>>{{1, 3, 5}, {65, 100, 33}, {130, 31, 192}}) {
      Layer layer(random, m, k, n);
      const std::vector<float> dw0 = layer.dw, db0 = layer.db;
      const auto check = [&](double room) {
        std::vector<float> dx(layer.dx.size()), dw = layer.dw = dw0, db = layer.db = db0;
        reference::linear_backward(layer.x, layer.w, layer.dout, m, dx, dw, db);
        layer.run(context, WeightFormat::bf16);
        CHECK(worst(layer.dx, dx) < tolerance(n) + room * static_cast<double>(n));
        CHECK(worst(layer.dw, dw) < tolerance(m) + room * static_cast<double>(m));
        CHECK(worst(layer.db, db) < tolerance(m));
        return worst(layer.dx, dx);
      };
      // Each factor of a product, below 5, is off by up to 2^-9 of it, and most of the sum's errors cancel.
      CHECK(check(2 * 5.0 * 5.0 * 0x1p-9) > 1e-4);
      for (auto* values : {&layer.x, &layer.w, &layer.dout}) {
        for (float& v : *values) v = static_cast<float>(bf16(v));
      }
      check(0);
    }
  }
}

TEST_CASE(
    "dropout keeps what its rule keeps on every ISA and width, alone as in a batch, at the rate asked for") {
  const std::vector<std::int32_t> cu{0, 7, 7, 20};
  const auto threshold = static_cast<std::uint32_t>(double{0.1f} * 0x1p32);
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    std::int64_t kept = 0;
    for (const std::int64_t columns : {1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 5010}) {
      std::vector<float> x(static_cast<std::size_t>(20 * columns), 1.0f);
      dropout(context, {view(x, 20, columns), cu, 0.1f, 0x1234567890abcdef, 77});
      bool same = true;
      for (std::uint32_t b = 0; b < 3; ++b) {
        for (std::int32_t m = cu[b]; m < cu[b + 1]; ++m) {
          for (std::uint32_t c = 0; c < columns; ++c) {
            const auto words = philox({c / 4, static_cast<std::uint32_t>(m - cu[b]), 0x80000000u + b, 77},
                                      0x1234567890abcdef);
            const bool keep = words[c % 4] >= threshold;
            same &= x[static_cast<std::size_t>(m * columns) + c] == (keep ? 1.0f / (1.0f - 0.1f) : 0.0f);
            kept += keep && columns == 5010 ? 1 : 0;
          }
        }
      }
      CAPTURE(isa_name(isa));
      CAPTURE(columns);
      CHECK(same);
      std::vector<float> alone(static_cast<std::size_t>(7 * columns), 1.0f);
      dropout(context,
              {view(alone, 7, columns), std::vector<std::int32_t>{0, 7}, 0.1f, 0x1234567890abcdef, 77});
      CHECK(std::equal(alone.begin(), alone.end(), x.begin()));
      // From one place to another, and on top of a residual.
      Random random(12);
      auto from = random.normals(20 * columns), residual = random.normals(20 * columns);
      const std::vector<float> before = from;
      std::vector<float> to(from.size(), NAN), sum(from.size(), NAN);
      DropoutArgs args{view(to, 20, columns), cu, 0.1f, 0x1234567890abcdef, 77, {}, view(from, 20, columns)};
      dropout(context, args);
      args.x = view(sum, 20, columns);
      args.residual = view(residual, 20, columns);
      dropout(context, args);
      same = from == before;
      for (std::size_t i = 0; i < x.size(); ++i) {
        same &= to[i] == (x[i] > 0.0f ? from[i] * x[i] : 0.0f) && sum[i] == to[i] + residual[i];
      }
      CHECK(same);
      args.p = 0.0f;
      dropout(context, args);
      same = true;
      for (std::size_t i = 0; i < x.size(); ++i) same &= sum[i] == from[i] + residual[i];
      CHECK(same);
    }
    // 100 200 draws: five standard deviations are 0.0047.
    CHECK(std::fabs(static_cast<double>(kept) / 100'200 - 0.9) < 0.0047);
  }
  ExecContext context({.threads = 1});
  std::vector<float> x(20);
  CHECK_THROWS_AS(dropout(context, {view(x, 20, 1), cu, 1.0f, 0, 0}), Error);
  CHECK_THROWS_AS(dropout(context, {view(x, 19, 1), cu, 0.5f, 0, 0}), Error);
}
