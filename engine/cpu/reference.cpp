#include "engine/cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace inkling::reference {

double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu_erf:
      return 0.5 * x * (1.0 + std::erf(x / std::numbers::sqrt2));
    case Activation::gelu_tanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
  }
  return x;
}

void linear(std::span<const float> x, std::span<const float> w, const float* bias, Activation activation,
            const float* residual, std::span<float> out) {
  for (std::size_t n = 0; n < out.size(); ++n) {
    double sum = bias != nullptr ? bias[n] : 0.0;
    for (std::size_t k = 0; k < x.size(); ++k) sum += double{x[k]} * double{w[k * out.size() + n]};
    out[n] = static_cast<float>(activate(sum, activation) + (residual != nullptr ? residual[n] : 0.0));
  }
}

void linear_backward(std::span<const float> x, std::span<const float> w, std::span<const float> dout,
                     std::int64_t m, std::span<float> dx, std::span<float> dw, std::span<float> db) {
  const auto rows = static_cast<std::size_t>(m), k = x.size() / rows, n = dout.size() / rows;
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t a = 0; a < k; ++a) {
      double sum = 0.0;
      for (std::size_t j = 0; j < n; ++j) sum += double{dout[i * n + j]} * double{w[a * n + j]};
      dx[i * k + a] = static_cast<float>(sum);
    }
  }
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t a = 0; a < k; ++a) {
      double sum = dw[a * n + j];
      for (std::size_t i = 0; i < rows; ++i) sum += double{x[i * k + a]} * double{dout[i * n + j]};
      dw[a * n + j] = static_cast<float>(sum);
    }
    double sum = db[j];
    for (std::size_t i = 0; i < rows; ++i) sum += double{dout[i * n + j]};
    db[j] = static_cast<float>(sum);
  }
}

void layer_norm(std::span<const float> x, const LayerNorm& norm, std::span<float> out) {
  const auto n = static_cast<double>(x.size());
  double mean = 0.0, variance = 0.0;
  for (const float v : x) mean += v / n;
  for (const float v : x) variance += (v - mean) * (v - mean) / n;
  const double inverse = 1.0 / std::sqrt(variance + double{norm.epsilon});
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double bias = norm.bias != nullptr ? norm.bias[i] : 0.0;
    out[i] = static_cast<float>((x[i] - mean) * inverse * norm.weight[i] + bias);
  }
}

void log_softmax(std::span<float> x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (const float v : x) sum += std::exp(v - top);
  for (float& v : x) v = static_cast<float>(v - top - std::log(sum));
}

void softmax(std::span<float> x) {
  if (*std::max_element(x.begin(), x.end()) == -INFINITY) return std::fill(x.begin(), x.end(), 0.0f);
  log_softmax(x);
  for (float& v : x) v = static_cast<float>(std::exp(double{v}));
}

}  // namespace inkling::reference
