#include "engine/ops.h"

#include <algorithm>
#include <string>

#include "engine/draw_rule.h"
#include "engine/exec_context.h"
#include "engine/op_checks.h"
#include "engine/op_work.h"
#include "engine/profiler.h"

namespace inkling {
namespace {

using op::check;
using op::check_rows;
using op::check_shape;
using op::elementwise;

/// Lists of another device cannot be read here.
void check_indices(const ExecContext& context, std::span<const std::int32_t> indices, std::int64_t limit,
                   const char* what) {
  if (context.device() == Device::cpu) op::check_indices(indices, limit, what);
}

std::int64_t rows_of(const TensorView& x, std::span<const std::int32_t> rows) {
  return rows.empty() ? x.shape[0] : static_cast<std::int64_t>(rows.size());
}

/// Kernels read a packed matrix by the layout of their own family. `what`: "op: argument".
void check_packed(const ExecContext& context, const PackedMatrix& w, const char* what) {
  require(w.device == context.device() && w.isa == context.isa(), Code::usage, [&] {
    return std::string(what) + ": expected the layout of " + std::string(device_name(context.device())) +
           ' ' + std::string(isa_name(context.isa())) + ", got that of " +
           std::string(device_name(w.device)) + ' ' + std::string(isa_name(w.isa));
  });
}

/// (K, N) of what x is multiplied with, and its bytes.
struct Right {
  std::int64_t k, n;
  WeightFormat format;
  double bytes;
};

Right check_right(const ExecContext& context, const LinearArgs& args) {
  if (const PackedMatrix* w = args.weight; w != nullptr) {
    check(args.matrix.data == nullptr, "linear: matrix: expected nothing beside weight",
          [&] { return args.matrix.shape_string(); });
    check_packed(context, *w, "linear: weight");
    return {w->k, w->n, w->format, static_cast<double>(w->bytes)};
  }
  const TensorView& w = args.matrix;
  check(w.data != nullptr, "linear: weight: expected a packed matrix", [] { return "null"; });
  check(args.matrix_format == WeightFormat::f32 || args.matrix_format == WeightFormat::bf16,
        "linear: matrix_format: expected f32 or bf16",
        [&] { return std::string(weight_format_name(args.matrix_format)); });
  const bool type =
      w.dtype == DType::f32 || w.dtype == context.backend().activation_dtype(args.matrix_format);
  check(w.rank == 2 && type && w.numel() > 0, "linear: matrix: expected f32 (K, N) above zero",
        [&] { return std::string(dtype_name(w.dtype)) + " " + w.shape_string(); });
  return {w.shape[0], w.shape[1], args.matrix_format, static_cast<double>(w.nbytes())};
}

ProfileWork work_of(const LinearArgs& args, const Right& w) {
  const auto m = static_cast<double>(args.out.shape[0]), k = static_cast<double>(w.k),
             n = static_cast<double>(w.n);
  const double rows =
      k + n + (args.residual.data != nullptr ? n : 0) + (args.pre_activation.data != nullptr ? n : 0);
  return {w.bytes + 4 * m * rows, 2 * m * k * n, {args.out.shape[0], w.k, w.n}};
}

// Draws with a temperature sum e^(scale · (x − max)) over their row. Settings of another device cannot be
// read here; the likeliest token costs comparisons alone.
ProfileWork work_of(const ExecContext& context, const DrawArgs& args) {
  double rows = 0;
  for (std::int64_t i = 0; i < args.count && context.device() == Device::cpu; ++i) {
    rows += args.settings[i].scale != 0.0f ? 1 : 0;
  }
  ProfileWork work = elementwise(args.logits, 1, 0);
  work.flops = rows * static_cast<double>(args.logits.shape[1]) * (op::kSoftmaxSum + 1);
  return work;
}

}  // namespace

void linear(ExecContext& context, const LinearArgs& args) {
  const Right w = check_right(context, args);
  const DType half = context.backend().activation_dtype(w.format);
  check_rows(args.x, "linear: x", half);
  check(args.x.shape[1] == w.k, "linear: x: expected as many columns as the weight has inputs",
        [&] { return args.x.shape_string() + " and K = " + std::to_string(w.k); });
  check_indices(context, args.rows, args.x.shape[0], "linear: rows");
  check_shape(args.out, rows_of(args.x, args.rows), w.n, "linear: out", half);
  if (args.residual.data != nullptr) check_shape(args.residual, args.out.shape[0], w.n, "linear: residual");
  if (args.pre_activation.data != nullptr) {
    check_shape(args.pre_activation, args.out.shape[0], w.n, "linear: pre_activation", half);
  }
  const ProfileRange range(context, "linear", [&] { return work_of(args, w); });
  if (args.out.shape[0] > 0) context.backend().linear(args);
}

void embed(ExecContext& context, const EmbedArgs& args) {
  const bool packed = args.token_table != nullptr;
  if (packed) {
    check_packed(context, *args.token_table, "embed: token_table");
  } else {
    check(args.token_rows.data != nullptr, "embed: token_table: expected a packed matrix",
          [] { return "null"; });
    check_rows(args.token_rows, "embed: token_rows");
  }
  const std::int64_t vocabulary = packed ? args.token_table->n : args.token_rows.shape[0],
                     width = packed ? args.token_table->k : args.token_rows.shape[1];
  const auto rows = static_cast<std::int64_t>(args.ids.size());
  check(args.positions.size() == args.ids.size(), "embed: positions: expected one per id",
        [&] { return std::to_string(args.positions.size()) + " for " + std::to_string(args.ids.size()); });
  check_rows(args.position_table, "embed: position_table");
  check(args.position_table.shape[1] == width, "embed: position_table: expected the table's width",
        [&] { return args.position_table.shape_string(); });
  check_indices(context, args.ids, vocabulary, "embed: ids");
  check_indices(context, args.positions, args.position_table.shape[0], "embed: positions");
  check_shape(args.out, rows, width, "embed: out");
  const ProfileRange range(context, "embed", [&] { return elementwise(args.out, 3, 1); });
  if (rows > 0) context.backend().embed(args);
}

void layer_norm(ExecContext& context, const NormArgs& args) {
  check_rows(args.x, "layer_norm: x");
  check_indices(context, args.rows, args.x.shape[0], "layer_norm: rows");
  check_shape(args.out, rows_of(args.x, args.rows), args.x.shape[1], "layer_norm: out",
              context.backend().activation_dtype(WeightFormat::bf16));
  const ProfileRange range(context, "layer_norm",
                           [&] { return elementwise(args.out, 2, op::norm_flops(args.norm)); });
  if (args.out.numel() > 0) context.backend().layer_norm(args);
}

void softmax(ExecContext& context, TensorView x) {
  check_rows(x, "softmax: x");
  const ProfileRange range(context, "softmax", [&] { return elementwise(x, 2, op::kSoftmaxSum + 1); });
  if (x.numel() > 0) context.backend().softmax(x);
}

void log_softmax(ExecContext& context, TensorView x) {
  check_rows(x, "log_softmax: x");
  const ProfileRange range(context, "log_softmax", [&] { return elementwise(x, 2, op::kSoftmaxSum + 1); });
  if (x.numel() > 0) context.backend().log_softmax(x);
}

void top(ExecContext& context, const TopArgs& args) {
  check_rows(args.x, "top: x");
  check_rows(args.values, "top: values");
  const std::int64_t k = args.values.shape[1];
  check(args.values.shape[0] == args.x.shape[0] && args.values.contiguous() && k >= 1 && k <= kMostTop &&
            k <= args.x.shape[1] && args.ids != nullptr,
        "top: values: expected a contiguous row of 1 to min(N, 1024) for each of x, and ids",
        [&] { return args.values.shape_string() + " of " + args.x.shape_string(); });
  const ProfileRange range(context, "top", [&] { return elementwise(args.x, 1, 0); });
  if (args.x.shape[0] > 0) context.backend().top(args);
}

void draw(ExecContext& context, const DrawArgs& args) {
  check_rows(args.logits, "draw: logits");
  check(args.logits.shape[1] >= 1 && args.logits.shape[1] <= kMostDrawn,
        "draw: logits: expected rows of 1 to 2^22", [&] { return args.logits.shape_string(); });
  check(args.count == 0 || (args.settings != nullptr && args.ids != nullptr),
        "draw: settings: expected a list, and one of ids", [] { return "null"; });
  if (context.device() == Device::cpu) {
    for (std::int64_t i = 0; i < args.count; ++i) {
      const DrawSettings& one = args.settings[i];
      check(one.row >= 0 && one.row < args.logits.shape[0], "draw: row: expected one of the logits",
            [&] { return std::to_string(one.row); });
      check(one.top_k >= 0 && one.top_k <= std::min(kMostTop, args.logits.shape[1]),
            "draw: top_k: expected 0 to min(V, 1024)", [&] { return std::to_string(one.top_k); });
    }
  }
  const ProfileRange range(context, "draw", [&] { return work_of(context, args); });
  if (args.count > 0) context.backend().draw(args);
}

void activate(ExecContext& context, TensorView x, Activation activation) {
  check_rows(x, "activate: x");
  const ProfileRange range(context, "activate",
                           [&] { return elementwise(x, 2, op::activation_flops(activation)); });
  if (x.numel() > 0) context.backend().activate(x, activation);
}

PackedMatrix pack(ExecContext& context, const MatrixSource& source, WeightFormat format, std::byte* memory) {
  check(source.data != nullptr || source.k * source.n == 0, "pack: source: expected data",
        [&] { return "null"; });
  check(source.k > 0 && source.n > 0, "pack: source: expected a shape above zero",
        [&] { return "[" + std::to_string(source.k) + ", " + std::to_string(source.n) + "]"; });
  check(source.dtype == DType::f32 || source.dtype == DType::f16 || source.dtype == DType::bf16,
        "pack: source: expected f32, f16 or bf16", [&] { return std::string(dtype_name(source.dtype)); });
  const ProfileRange range(context, "pack", [&] {
    const double read =
        static_cast<double>(source.k * source.n) * static_cast<double>(dtype_size(source.dtype));
    return ProfileWork{
        read + static_cast<double>(context.backend().packed_nbytes(source.k, source.n, format)),
        0,
        {0, source.k, source.n}};
  });
  return context.backend().pack(source, format, memory);
}

PackedMatrix packed_at(const ExecContext& context, const std::byte* memory, std::int64_t k, std::int64_t n,
                       WeightFormat format) {
  return context.backend().packed_at(memory, k, n, format);
}

std::size_t packed_nbytes(const ExecContext& context, std::int64_t k, std::int64_t n, WeightFormat format) {
  return context.backend().packed_nbytes(k, n, format);
}

void unpack_column(const ExecContext& context, const PackedMatrix& matrix, std::int64_t n, float* out) {
  check(n >= 0 && n < matrix.n, "unpack_column: n: expected a column of the matrix",
        [&] { return std::to_string(n); });
  check_packed(context, matrix, "unpack_column: matrix");
  context.backend().unpack_column(matrix, n, out);
}

}  // namespace inkling
