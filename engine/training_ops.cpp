#include "engine/training_ops.h"

#include <algorithm>
#include <string>

#include "engine/exec_context.h"
#include "engine/op_checks.h"
#include "engine/op_work.h"
#include "engine/profiler.h"

namespace inkling {

using op::check;
using op::check_rows;
using op::check_shape;
using op::check_size;
using op::elementwise;

namespace {

/// What rows may be instead of f32.
DType half(const ExecContext& context) {
  return context.backend().activation_dtype(WeightFormat::bf16);
}

/// Lists of another device cannot be read here.
bool readable(const ExecContext& context) {
  return context.device() == Device::cpu;
}

void check_one_dtype(const TensorView& a, const TensorView& b, const char* what) {
  require(a.dtype == b.dtype, Code::usage, [&] {
    return std::string(what) + ": expected one dtype, got " + std::string(dtype_name(a.dtype)) + " and " +
           std::string(dtype_name(b.dtype));
  });
}

/// Everything but x, whose rows are (rows, columns).
void check_dropout(const ExecContext& context, const DropoutArgs& args, std::int64_t rows,
                   std::int64_t columns) {
  check(args.p >= 0.0f && args.p < 1.0f, "dropout: p: expected a rate in [0, 1)",
        [&] { return std::to_string(args.p); });
  check(!args.cu_seqlens.empty() &&
            (!readable(context) || (args.cu_seqlens.front() == 0 && args.cu_seqlens.back() == rows &&
                                    std::ranges::is_sorted(args.cu_seqlens))),
        "dropout: cu_seqlens: expected offsets rising from 0 to the rows of x", [&] {
          return std::to_string(args.cu_seqlens.size()) + " of them for " + std::to_string(rows) + " rows";
        });
  if (args.residual.data != nullptr) check_shape(args.residual, rows, columns, "dropout: residual");
  if (args.from.data != nullptr) check_shape(args.from, rows, columns, "dropout: from", half(context));
  if (args.normed.data == nullptr) return;
  check_shape(args.x, rows, columns, "dropout: x beside normed");
  check_shape(args.normed, rows, columns, "dropout: normed", half(context));
  check(args.norm.weight != nullptr, "dropout: norm: expected a weight", [] { return "null"; });
}

}  // namespace

void linear_backward(ExecContext& context, const LinearBackwardArgs& args) {
  check_rows(args.dout, "linear_backward: dout", half(context));
  const std::int64_t m = args.dout.shape[0], n = args.dout.shape[1];
  check(args.format == WeightFormat::f32 || args.format == WeightFormat::bf16,
        "linear_backward: format: expected f32 or bf16",
        [&] { return std::string(weight_format_name(args.format)); });
  double products = 0, k = 0;
  if (args.dx.data != nullptr) {
    const bool type = args.weight.dtype == DType::f32 ||
                      args.weight.dtype == context.backend().activation_dtype(args.format);
    require(args.weight.rank == 2 && type && args.weight.shape[1] == n, Code::usage, [&] {
      return "linear_backward: weight: expected (K, " + std::to_string(n) +
             ") in f32 or as activations are, got " + args.weight.shape_string() + " in " +
             std::string(dtype_name(args.weight.dtype));
    });
    check_shape(args.dx, m, args.weight.shape[0], "linear_backward: dx", half(context));
    if (args.activation != Activation::none) {
      check_shape(args.pre_activation, m, args.weight.shape[0], "linear_backward: pre_activation",
                  half(context));
      check_one_dtype(args.pre_activation, args.dx, "linear_backward: pre_activation and dx");
    }
    k = static_cast<double>(args.weight.shape[0]);
    ++products;
  }
  if (args.dweight.data != nullptr) {
    check_shape(args.x, m, args.x.shape[1], "linear_backward: x", half(context));
    check_shape(args.dweight, args.x.shape[1], n, "linear_backward: dweight");
    k = static_cast<double>(args.x.shape[1]);
    ++products;
  }
  const ProfileRange range(context, "linear_backward", [&] {
    const auto rows = static_cast<double>(m), columns = static_cast<double>(n);
    return ProfileWork{4 * (rows * (2 * k + columns) + products * k * columns),
                       products * 2 * rows * k * columns,
                       {m, static_cast<std::int64_t>(k), n}};
  });
  if (m > 0) context.backend().linear_backward(args);
}

void layer_norm_backward(ExecContext& context, const LayerNormBackwardArgs& args) {
  check_rows(args.x, "layer_norm_backward: x");
  check(args.norm.weight != nullptr, "layer_norm_backward: norm: expected a weight", [] { return "null"; });
  check_shape(args.dout, args.x.shape[0], args.x.shape[1], "layer_norm_backward: dout", half(context));
  check_shape(args.dx, args.x.shape[0], args.x.shape[1], "layer_norm_backward: dx");
  if (args.branch.x.data != nullptr) {
    check_shape(args.branch.x, args.x.shape[0], args.x.shape[1], "layer_norm_backward: branch",
                half(context));
    check(args.branch.from.data == nullptr && args.branch.residual.data == nullptr &&
              args.branch.normed.data == nullptr,
          "layer_norm_backward: branch: expected x and its mask alone", [] { return "more"; });
    check_dropout(context, args.branch, args.x.shape[0], args.x.shape[1]);
  }
  // g = dout · weight 1; mean and variance 4; (x − mean)/σ 1; the sums of g and g · y 3; dx 5. Then the
  // branch's mask, and what weight and bias get.
  const ProfileRange range(context, "layer_norm_backward", [&] {
    return elementwise(args.x, 4,
                       14 + (args.branch.x.data != nullptr && args.branch.p > 0.0f ? 1 : 0) +
                           (args.dweight != nullptr ? 2 : 0) + (args.dbias != nullptr ? 1 : 0));
  });
  if (args.x.numel() > 0) context.backend().layer_norm_backward(args);
}

void activate_backward(ExecContext& context, const ActivateBackwardArgs& args) {
  check_rows(args.x, "activate_backward: x", half(context));
  const auto check_like_x = [&](const TensorView& other, const char* what) {
    check_shape(other, args.x.shape[0], args.x.shape[1], what, args.x.dtype);
    check_one_dtype(args.x, other, what);
  };
  check_like_x(args.dx, "activate_backward: dx");
  const bool both = args.activated.data != nullptr;
  if (both) check_like_x(args.activated, "activate_backward: activated");
  const ProfileRange range(context, "activate_backward", [&] {
    const double slope = op::activation_slope_flops(args.activation);
    return elementwise(args.x, both ? 4 : 3, slope + (both && slope > 0 ? 1 : 0));
  });
  if (args.x.numel() > 0) context.backend().activate_backward(args);
}

void embed_backward(ExecContext& context, const EmbedBackwardArgs& args) {
  check_rows(args.dout, "embed_backward: dout", half(context));
  const std::int64_t rows = args.dout.shape[0], width = args.dout.shape[1];
  check_size(args.ids.size(), static_cast<std::size_t>(rows), "embed_backward: ids");
  check_size(args.positions.size(), static_cast<std::size_t>(rows), "embed_backward: positions");
  check_shape(args.dtoken, args.dtoken.shape[0], width, "embed_backward: dtoken");
  check_shape(args.dposition, args.dposition.shape[0], width, "embed_backward: dposition");
  if (readable(context)) {
    op::check_indices(args.ids, args.dtoken.shape[0], "embed_backward: ids");
    op::check_indices(args.positions, args.dposition.shape[0], "embed_backward: positions");
  }
  const ProfileRange range(context, "embed_backward", [&] { return elementwise(args.dout, 5, 2); });
  if (args.dout.numel() > 0) context.backend().embed_backward(args);
}

void dropout(ExecContext& context, const DropoutArgs& args) {
  check_rows(args.x, "dropout: x", half(context));
  check_dropout(context, args, args.x.shape[0], args.x.shape[1]);
  const bool more = args.residual.data != nullptr, normed = args.normed.data != nullptr;
  const ProfileRange range(context, "dropout", [&] {
    return elementwise(args.x, 2 + (more ? 1 : 0) + (normed ? 1 : 0),
                       (args.p > 0.0f ? 1 : 0) + (more ? 1 : 0) + (normed ? op::norm_flops(args.norm) : 0));
  });
  const bool changes = args.p > 0.0f || more || normed || args.from.data != nullptr;
  if (changes && args.x.numel() > 0) context.backend().dropout(args);
}

void cross_entropy(ExecContext& context, const CrossEntropyArgs& args) {
  check_rows(args.logits, "cross_entropy: logits", half(context));
  const std::int64_t rows = args.logits.shape[0], vocabulary = args.logits.shape[1];
  check_size(args.targets.size(), static_cast<std::size_t>(rows), "cross_entropy: targets");
  check_size(args.losses.size(), static_cast<std::size_t>(rows), "cross_entropy: losses");
  for (const std::int32_t target : readable(context) ? args.targets : std::span<const std::int32_t>()) {
    check(target >= -1 && target < vocabulary, "cross_entropy: targets: expected columns of logits or -1",
          [&] { return std::to_string(target) + " of " + std::to_string(vocabulary); });
  }
  const bool gradient = args.scale != 0.0f;
  const ProfileRange range(context, "cross_entropy", [&] {
    return elementwise(args.logits, gradient ? 2 : 1, op::kSoftmaxSum + (gradient ? 1 : 0));
  });
  if (rows > 0) context.backend().cross_entropy(args);
}

double sum_of_squares(ExecContext& context, std::span<const float> x) {
  const ProfileRange range(context, "sum_of_squares", [&] {
    const auto n = static_cast<double>(x.size());
    return ProfileWork{4 * n, 2 * n, {}};
  });
  return x.empty() ? 0.0 : context.backend().sum_of_squares(x);
}

void adamw(ExecContext& context, const AdamWArgs& args) {
  check_size(args.gradient.size(), args.parameter.size(), "adamw: gradient");
  check_size(args.m.size(), args.parameter.size(), "adamw: m");
  check_size(args.v.size(), args.parameter.size(), "adamw: v");
  const auto check_beta = [](double beta, const char* what) {
    check(beta >= 0.0 && beta < 1.0, what, [&] { return std::to_string(beta); });
  };
  check_beta(args.beta1, "adamw: beta1: expected a rate in [0, 1)");
  check_beta(args.beta2, "adamw: beta2: expected a rate in [0, 1)");
  check(args.epsilon >= 0.0, "adamw: epsilon: expected at least 0",
        [&] { return std::to_string(args.epsilon); });
  check(args.step >= 1, "adamw: step: expected at least 1", [&] { return std::to_string(args.step); });
  if (args.rounded.data != nullptr) {
    check_shape(args.rounded, 1, static_cast<std::int64_t>(args.parameter.size()), "adamw: rounded",
                half(context));
    check(args.rounded.dtype != DType::f32, "adamw: rounded: expected 16 bits",
          [&] { return std::string(dtype_name(args.rounded.dtype)); });
  }
  const ProfileRange range(context, "adamw", [&] {
    const auto n = static_cast<double>(args.parameter.size());
    return ProfileWork{28 * n, 16 * n, {}};
  });
  if (!args.parameter.empty()) context.backend().adamw(args);
}

}  // namespace inkling
