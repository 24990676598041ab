// The ops of a training step against PyTorch in f64 (tests/golden/make_training_golden.py).
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <vector>

#include "engine/exec_context.h"
#include "engine/training_ops.h"
#include "tests/data.h"

using namespace inkling;

namespace {

using Floats = std::vector<float>;

TensorView view(Floats& data, std::int64_t rows, std::int64_t columns) {
  return TensorView(data.data(), DType::f32, {rows, columns});
}

Floats read_numbers(std::istream& file) {
  std::size_t count = 0;
  REQUIRE(static_cast<bool>(file >> count));
  Floats values(count);
  for (float& value : values) file >> value;
  return values;
}

void check_close(const Floats& got, const Floats& want, double allowed) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(std::fabs(double{got[i]} - double{want[i]}) <= allowed * (1 + std::fabs(want[i])));
  }
}

}  // namespace

TEST_CASE("[golden] gradients, loss and AdamW are PyTorch's") {
  std::ifstream file(test::source_dir() / "tests/golden/training_ops.txt");
  const auto next = [&] { return read_numbers(file); };
  ExecContext context({.threads = 2});
  {
    Floats x = next(), gamma = next(), beta = next(), dout = next(), dx(30), dgamma(10), dbeta(10);
    layer_norm_backward(context, {view(x, 3, 10),
                                  {gamma.data(), beta.data(), 1e-5f},
                                  view(dout, 3, 10),
                                  view(dx, 3, 10),
                                  dgamma.data(),
                                  dbeta.data()});
    check_close(dx, next(), 1e-6);
    check_close(dgamma, next(), 1e-6);
    check_close(dbeta, next(), 1e-6);
  }
  Floats x = next();
  const auto n = static_cast<std::int64_t>(x.size());
  for (const Activation act : {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu}) {
    Floats dx(x.size(), 1.0f);
    activate_backward(context, {view(x, 1, n), act, view(dx, 1, n), {}});
    check_close(dx, next(), 1e-6);
  }
  Floats logits = next(), losses(4);
  std::vector<std::int32_t> targets;
  for (const float t : next()) targets.push_back(static_cast<std::int32_t>(t));
  cross_entropy(context, {view(logits, 4, 11), targets, 0.25f, losses});
  check_close(losses, next(), 1e-6);
  check_close(logits, next(), 1e-6);

  Floats parameter = next(), m(parameter.size()), v(parameter.size());
  for (std::int64_t step = 1; step <= 5; ++step) {
    const Floats gradient = next();
    adamw(context, {parameter, gradient, m, v, 0.01, 0.9, 0.95, 1e-8, 0.1, 1.0f, step});
  }
  check_close(parameter, next(), 1e-6);
  check_close(m, next(), 1e-6);
  check_close(v, next(), 1e-6);
}
