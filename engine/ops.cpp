#include "engine/ops.h"

#include <algorithm>
#include <string>

#include "engine/exec_context.h"
#include "engine/profiler.h"

namespace inkling {
namespace {

// "op: argument: expected …, got …". `got` is a callable: a check that passes builds no string.
template <class Got>
void check(bool ok, const char* what, Got&& got) {
  require(ok, Code::usage, [&] { return std::string(what) + ", got " + std::string(got()); });
}

void check_rows(const TensorView& x, const char* what) {
  require(x.rank == 2 && x.dtype == DType::f32 && (x.shape[1] <= 1 || x.stride[1] == 1), Code::usage, [&] {
    return std::string(what) + ": expected f32 rows of rank 2, got " + std::string(dtype_name(x.dtype)) +
           " " + x.shape_string();
  });
}

void check_shape(const TensorView& x, std::int64_t rows, std::int64_t columns, const char* what) {
  check_rows(x, what);
  require(x.shape[0] == rows && x.shape[1] == columns, Code::usage, [&] {
    return std::string(what) + ": expected [" + std::to_string(rows) + ", " + std::to_string(columns) +
           "], got " + x.shape_string();
  });
}

void check_indices(std::span<const std::int32_t> indices, std::int64_t limit, const char* what) {
  for (const std::int32_t i : indices) {
    require(i >= 0 && i < limit, Code::usage, [&] {
      return std::string(what) + ": expected indices below " + std::to_string(limit) + ", got " +
             std::to_string(i);
    });
  }
}

std::int64_t rows_of(const TensorView& x, std::span<const std::int32_t> rows) {
  return rows.empty() ? x.shape[0] : static_cast<std::int64_t>(rows.size());
}

/// Reads and writes `touched` elements of f32.
ProfileWork elementwise(const TensorView& x, double touched) {
  return {4 * touched * static_cast<double>(x.numel()), 0, {x.shape[0], 0, 0}};
}

ProfileWork work_of(const LinearArgs& args) {
  const PackedMatrix& w = *args.weight;
  const auto m = static_cast<double>(args.out.shape[0]), k = static_cast<double>(w.k),
             n = static_cast<double>(w.n);
  const double rows = k + n + (args.residual.data != nullptr ? n : 0);
  return {static_cast<double>(w.bytes) + 4 * m * rows, 2 * m * k * n, {args.out.shape[0], w.k, w.n}};
}

}  // namespace

void linear(ExecContext& context, const LinearArgs& args) {
  check(args.weight != nullptr, "linear: weight: expected a packed matrix", [&] { return "null"; });
  const PackedMatrix& w = *args.weight;
  check(w.isa == context.isa(), "linear: weight: expected the layout of this context's kernels",
        [&] { return std::string(isa_name(w.isa)); });
  check_rows(args.x, "linear: x");
  check(args.x.shape[1] == w.k, "linear: x: expected as many columns as the weight has inputs",
        [&] { return args.x.shape_string() + " and K = " + std::to_string(w.k); });
  check_indices(args.rows, args.x.shape[0], "linear: rows");
  check_shape(args.out, rows_of(args.x, args.rows), w.n, "linear: out");
  if (args.residual.data != nullptr) check_shape(args.residual, args.out.shape[0], w.n, "linear: residual");
  const ProfileRange range(context, "linear", [&] { return work_of(args); });
  if (args.out.shape[0] > 0) context.backend().linear(args);
}

void linear_backward(ExecContext& context, const LinearBackwardArgs& args) {
  check_rows(args.dout, "linear_backward: dout");
  const std::int64_t m = args.dout.shape[0], n = args.dout.shape[1];
  double products = 0, k = 0;
  if (args.dx.data != nullptr) {
    require(args.weight.rank == 2 && args.weight.dtype == DType::f32 && args.weight.shape[1] == n,
            Code::usage, [&] {
              return "linear_backward: weight: expected f32 (K, " + std::to_string(n) + "), got " +
                     args.weight.shape_string();
            });
    check_shape(args.dx, m, args.weight.shape[0], "linear_backward: dx");
    k = static_cast<double>(args.weight.shape[0]);
    ++products;
  }
  if (args.dweight.data != nullptr) {
    check_shape(args.x, m, args.x.shape[1], "linear_backward: x");
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

void dropout(ExecContext& context, const DropoutArgs& args) {
  check_rows(args.x, "dropout: x");
  check(args.p >= 0.0f && args.p < 1.0f, "dropout: p: expected a rate in [0, 1)",
        [&] { return std::to_string(args.p); });
  check(!args.cu_seqlens.empty() && args.cu_seqlens.front() == 0 &&
            args.cu_seqlens.back() == args.x.shape[0] && std::ranges::is_sorted(args.cu_seqlens),
        "dropout: cu_seqlens: expected offsets rising from 0 to the rows of x",
        [&] { return std::to_string(args.cu_seqlens.size()) + " of them for " + args.x.shape_string(); });
  const ProfileRange range(context, "dropout", [&] { return elementwise(args.x, 2); });
  if (args.p > 0.0f && args.x.numel() > 0) context.backend().dropout(args);
}

void embed(ExecContext& context, const EmbedArgs& args) {
  check(args.token_table != nullptr, "embed: token_table: expected a packed matrix", [&] { return "null"; });
  const auto rows = static_cast<std::int64_t>(args.ids.size());
  check(args.positions.size() == args.ids.size(), "embed: positions: expected one per id",
        [&] { return std::to_string(args.positions.size()) + " for " + std::to_string(args.ids.size()); });
  check_rows(args.position_table, "embed: position_table");
  check(args.position_table.shape[1] == args.token_table->k,
        "embed: position_table: expected the table's width",
        [&] { return args.position_table.shape_string(); });
  check_indices(args.ids, args.token_table->n, "embed: ids");
  check_indices(args.positions, args.position_table.shape[0], "embed: positions");
  check_shape(args.out, rows, args.token_table->k, "embed: out");
  const ProfileRange range(context, "embed", [&] { return elementwise(args.out, 3); });
  if (rows > 0) context.backend().embed(args);
}

void layer_norm(ExecContext& context, const NormArgs& args) {
  check_rows(args.x, "layer_norm: x");
  check_indices(args.rows, args.x.shape[0], "layer_norm: rows");
  check_shape(args.out, rows_of(args.x, args.rows), args.x.shape[1], "layer_norm: out");
  const ProfileRange range(context, "layer_norm", [&] { return elementwise(args.out, 2); });
  if (args.out.numel() > 0) context.backend().layer_norm(args);
}

void softmax(ExecContext& context, TensorView x) {
  check_rows(x, "softmax: x");
  const ProfileRange range(context, "softmax", [&] { return elementwise(x, 2); });
  if (x.numel() > 0) context.backend().softmax(x);
}

void log_softmax(ExecContext& context, TensorView x) {
  check_rows(x, "log_softmax: x");
  const ProfileRange range(context, "log_softmax", [&] { return elementwise(x, 2); });
  if (x.numel() > 0) context.backend().log_softmax(x);
}

void activate(ExecContext& context, TensorView x, Activation activation) {
  check_rows(x, "activate: x");
  const ProfileRange range(context, "activate", [&] { return elementwise(x, 2); });
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

std::size_t packed_nbytes(const ExecContext& context, std::int64_t k, std::int64_t n, WeightFormat format) {
  return context.backend().packed_nbytes(k, n, format);
}

void unpack_column(const ExecContext& context, const PackedMatrix& matrix, std::int64_t n, float* out) {
  check(n >= 0 && n < matrix.n, "unpack_column: n: expected a column of the matrix",
        [&] { return std::to_string(n); });
  context.backend().unpack_column(matrix, n, out);
}

}  // namespace inkling
