// The naive oracle: every op in plain loops and f64 sums, for the tests and for reading.
#pragma once

#include <cstdint>
#include <span>

#include "engine/training_ops.h"

namespace inkling::reference {

/// out[n] = residual[n] + act(Σ_k x[k]·w[k·N + n] + bias[n]) for one row; bias and residual may be null.
void linear(std::span<const float> x, std::span<const float> w, const float* bias, Activation activation,
            const float* residual, std::span<float> out);
/// dx = dout · wᵀ, dw += xᵀ · dout, db += Σ dout for (M, K) x, (K, N) w and (M, N) dout.
void linear_backward(std::span<const float> x, std::span<const float> w, std::span<const float> dout,
                     std::int64_t m, std::span<float> dx, std::span<float> dw, std::span<float> db);
void layer_norm(std::span<const float> x, const LayerNorm& norm, std::span<float> out);
void softmax(std::span<float> x);
void log_softmax(std::span<float> x);
double activate(double x, Activation activation);

/// One row: dx += d norm(x)/dx · dout, dweight += dout · (x − mean)/σ, dbias += dout. The norm's bias is not
/// looked at.
void layer_norm_backward(std::span<const float> x, const LayerNorm& norm, std::span<const float> dout,
                         std::span<double> dx, std::span<double> dweight, std::span<double> dbias);
double activate_derivative(double x, Activation activation);
/// The loss of one row and its gradient; target −1: zeros.
double cross_entropy(std::span<const float> logits, std::int32_t target, std::span<double> gradient);
/// One step of one element; args' spans are not looked at.
void adamw(const AdamWArgs& args, double gradient, double& parameter, double& m, double& v);

}  // namespace inkling::reference
