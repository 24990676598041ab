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

void layer_norm_backward(std::span<const float> x, const LayerNorm& norm, std::span<const float> dout,
                         std::span<double> dx, std::span<double> dweight, std::span<double> dbias) {
  const auto n = static_cast<double>(x.size());
  double mean = 0.0, variance = 0.0;
  for (const float v : x) mean += v / n;
  for (const float v : x) variance += (v - mean) * (v - mean) / n;
  const double inverse = 1.0 / std::sqrt(variance + double{norm.epsilon});
  double g_mean = 0.0, gy_mean = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double g = double{dout[i]} * double{norm.weight[i]}, y = (x[i] - mean) * inverse;
    g_mean += g / n;
    gy_mean += g * y / n;
    dweight[i] += dout[i] * y;
    dbias[i] += dout[i];
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double g = double{dout[i]} * double{norm.weight[i]}, y = (x[i] - mean) * inverse;
    dx[i] += (g - g_mean - y * gy_mean) * inverse;
  }
}

double activate_derivative(double x, Activation activation) {
  switch (activation) {
    case Activation::none:
      return 1.0;
    case Activation::relu:
      return x > 0.0 ? 1.0 : 0.0;
    case Activation::gelu_erf:
      return 0.5 * (1.0 + std::erf(x / std::numbers::sqrt2)) +
             x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi);
    case Activation::gelu_tanh: {
      const double root = std::sqrt(2.0 / std::numbers::pi);
      const double t = std::tanh(root * (x + 0.044715 * x * x * x));
      return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3 * 0.044715 * x * x);
    }
  }
  return 1.0;
}

double cross_entropy(std::span<const float> logits, std::int32_t target, std::span<double> gradient) {
  std::ranges::fill(gradient, 0.0);
  if (target < 0) return 0.0;
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float v : logits) sum += std::exp(v - top);
  for (std::size_t i = 0; i < logits.size(); ++i) gradient[i] = std::exp(logits[i] - top) / sum;
  const auto at = static_cast<std::size_t>(target);
  gradient[at] -= 1.0;
  return std::log(sum) + top - logits[at];
}

void adamw(const AdamWArgs& args, double gradient, double& parameter, double& m, double& v) {
  const double g = gradient * double{args.gradient_scale}, step = static_cast<double>(args.step);
  parameter -= args.learning_rate * args.weight_decay * parameter;
  m = args.beta1 * m + (1.0 - args.beta1) * g;
  v = args.beta2 * v + (1.0 - args.beta2) * g * g;
  const double m_hat = m / (1.0 - std::pow(args.beta1, step)), v_hat = v / (1.0 - std::pow(args.beta2, step));
  parameter -= args.learning_rate * m_hat / (std::sqrt(v_hat) + args.epsilon);
}

}  // namespace inkling::reference
