// The training half of CudaBackend: gradients, loss, dropout and optimiser.
#include <algorithm>
#include <cstdint>
#include <memory>

#include "engine/cuda/check.h"
#include "engine/cuda/cublas_lt.h"
#include "engine/cuda/cuda_backend.h"
#include "engine/cuda/training_kernels.h"
#include "engine/philox.h"

namespace inkling::cuda {
namespace {

Matrix matrix_of(const TensorView& view) {
  return view.data == nullptr ? Matrix() : Matrix(view);
}

/// A (K, N) view as the rows that lie in memory, and whether those are its rows or its columns.
struct Lying {
  Matrix rows;
  bool along_first = false;  ///< a row of memory is one k
};
Lying lying(const TensorView& view) {
  Lying l{Matrix(view), true};
  if (view.stride[1] == 1) return l;
  require(view.stride[0] == 1, Code::usage,
          [] { return std::string("linear: matrix: expected rows or columns without gaps, got neither"); });
  std::swap(l.rows.rows, l.rows.columns);
  l.rows.stride = view.stride[1];
  return {l.rows, false};
}

DType factor_dtype(WeightFormat format) {
  return format == WeightFormat::bf16 ? DType::bf16 : DType::f32;
}

Dropout dropout_of(const DropoutArgs& args) {
  Dropout d;
  d.x = Matrix(args.x);
  d.from = args.from.data != nullptr ? Matrix(args.from) : d.x;
  d.residual = matrix_of(args.residual);
  d.norm = args.norm;
  d.normed = matrix_of(args.normed);
  d.cu_seqlens = args.cu_seqlens.data();
  d.sequences = static_cast<int>(args.cu_seqlens.size()) - 1;
  d.threshold = dropout_threshold(args.p);
  d.offset = args.offset;
  d.scale = 1.0f / (1.0f - args.p);
  d.seed = args.seed;
  return d;
}

/// (rows, columns) of `dtype` in `memory`, rows at multiples of 64 bytes.
Matrix placed(std::byte* memory, std::int64_t rows, std::int64_t columns, DType dtype) {
  const auto line = static_cast<std::int64_t>(64 / dtype_size(dtype));
  Matrix m;
  m.data = memory;
  m.dtype = dtype;
  m.rows = rows;
  m.columns = columns;
  m.stride = (columns + line - 1) / line * line;
  return m;
}

std::size_t placed_bytes(std::int64_t rows, std::int64_t columns, DType dtype) {
  return static_cast<std::size_t>(rows * placed(nullptr, rows, columns, dtype).stride) * dtype_size(dtype);
}

}  // namespace

Matrix CudaBackend::as_factor(const Matrix& x, DType dtype, const LayerNorm& norm, Buffer& memory) {
  if (x.data == nullptr || (norm.weight == nullptr && x.dtype == dtype && in_pieces(x))) return x;
  const Matrix out = placed(grown(memory, placed_bytes(x.rows, x.columns, dtype)), x.rows, x.columns, dtype);
  check(norm_rows({x, nullptr, norm, out, Start::in_turn}, stream()), "layer_norm");
  return out;
}

bool CudaBackend::multiply_by_library(Product product) {
  if (!CublasLt::takes(product)) return false;
  const cudaStream_t in = stream();
  if (cublas_lt_ == nullptr) cublas_lt_ = std::make_unique<CublasLt>();
  if (!cublas_lt_->unavailable_reason().empty()) return false;
  if (product.bias != nullptr && product.out.dtype == DType::bf16) {
    Matrix bias;
    bias.data = const_cast<float*>(product.bias);
    bias.rows = 1;
    bias.columns = bias.stride = product.out.columns;
    product.rounded_bias = as_factor(bias, DType::bf16, {}, bias_).data;
  }
  return cublas_lt_->multiply(product, grown(parts_, kProductWorkspace), in);
}

/// By cuBLASLt where it is there and takes the product, else by the Hopper kernel: both read operands as they
/// lie. Elsewhere those that lie by k are turned first.
void CudaBackend::multiply(const Product& product, DType dtype) {
  if (multiply_by_library(product)) return;
  if (product.slope_at.data != nullptr) {
    Product plain = product;
    plain.slope_at = Matrix();
    plain.activation = Activation::none;
    multiply(plain, dtype);
    return check(
        cuda::activate_backward(product.slope_at, product.activation, product.out, Matrix(), stream()),
        "activate_backward");
  }
  if (takes_product(product)) {
    auto* const parts = reinterpret_cast<float*>(grown(parts_, kProductWorkspace));
    return check(cuda::product(product, parts, stream()), "linear");
  }
  const auto turned = [&](const Matrix& m, bool by_k, Buffer& memory) {
    if (!by_k) return m;
    const Matrix out =
        placed(grown(memory, placed_bytes(m.columns, m.rows, dtype)), m.columns, m.rows, dtype);
    check(transpose(m, out, stream()), "transpose");
    return out;
  };
  Linear l;
  l.x = turned(product.a, product.a_by_k, transposed_);
  l.weight = turned(product.b, product.b_by_k, turned_);
  l.bias = product.bias;
  l.activation = product.activation;
  l.residual = product.residual;
  l.pre_activation = product.pre_activation;
  l.out = product.out;
  l.start = Start::in_turn;  // AdamW, or a copy just made, wrote the weight
  check(cuda::linear(l, stream()), "linear");
}

void CudaBackend::linear_with_matrix(const LinearArgs& args) {
  require(args.rows.empty(), Code::device,
          [] { return std::string("linear: rows: cuda takes all of them beside a matrix"); });
  const DType dtype = factor_dtype(args.matrix_format);
  const Lying weight = lying(args.matrix);
  Product p;
  p.a = as_factor(Matrix(args.x), dtype, args.norm, rows_);
  p.b = as_factor(weight.rows, dtype, {}, weight_);
  p.b_by_k = weight.along_first;
  p.bias = args.bias;
  p.activation = args.activation;
  p.residual = matrix_of(args.residual);
  p.pre_activation = matrix_of(args.pre_activation);
  p.out = Matrix(args.out);
  multiply(p, dtype);
}

void CudaBackend::linear_backward(const LinearBackwardArgs& args) {
  const DType dtype = factor_dtype(args.format);
  const Matrix dout = as_factor(Matrix(args.dout), dtype, {}, dout_);
  if (args.dx.data != nullptr) {
    const Lying weight = lying(args.weight);
    Product p;
    p.a = dout;
    p.b = as_factor(weight.rows, dtype, {}, weight_);
    p.b_by_k = !weight.along_first;
    p.activation = args.activation;
    if (args.activation != Activation::none) p.slope_at = Matrix(args.pre_activation);
    p.out = Matrix(args.dx);
    multiply(p, dtype);
  }
  if (args.dweight.data != nullptr) {
    Product p;
    p.a = as_factor(Matrix(args.x), dtype, {}, rows_);
    p.b = dout;
    p.a_by_k = p.b_by_k = true;
    p.out = Matrix(args.dweight);
    if (!args.replaces) p.residual = p.out;
    multiply(p, dtype);
  }
  if (args.dbias != nullptr) {
    const Matrix rows(args.dout);
    auto* const sums = reinterpret_cast<float*>(grown(sums_, column_sums_bytes(rows.rows, rows.columns)));
    check(column_sums(rows, args.dbias, args.replaces, sums, stream()), "linear_backward");
  }
}

void CudaBackend::layer_norm_backward(const LayerNormBackwardArgs& args) {
  const std::size_t bytes = layer_norm_backward_bytes(args.x.shape[0], args.x.shape[1]);
  auto* const sums = reinterpret_cast<float*>(grown(sums_, bytes));
  NormBackward n{Matrix(args.x), args.norm, Matrix(args.dout), Matrix(args.dx), args.dweight, args.dbias};
  n.replaces = args.replaces;
  if (args.branch.x.data != nullptr) {
    n.branch = dropout_of(args.branch);
    n.branch.from = n.dx;
  }
  check(cuda::layer_norm_backward(n, sums, stream()), "layer_norm_backward");
}

void CudaBackend::activate_backward(const ActivateBackwardArgs& args) {
  check(cuda::activate_backward(Matrix(args.x), args.activation, Matrix(args.dx), matrix_of(args.activated),
                                stream()),
        "activate_backward");
}

void CudaBackend::embed_backward(const EmbedBackwardArgs& args) {
  const Matrix dout(args.dout);
  std::byte* const memory = grown(sums_, gather_rows_bytes(dout.rows, dout.columns));
  check(gather_rows(dout, args.ids.data(), Matrix(args.dtoken), memory, stream()), "embed_backward");
  check(gather_rows(dout, args.positions.data(), Matrix(args.dposition), memory, stream()), "embed_backward");
}

void CudaBackend::dropout(const DropoutArgs& args) {
  check(cuda::dropout(dropout_of(args), stream()), "dropout");
}

void CudaBackend::cross_entropy(const CrossEntropyArgs& args) {
  check(
      cuda::cross_entropy(Matrix(args.logits), args.targets.data(), args.scale, args.losses.data(), stream()),
      "cross_entropy");
}

double CudaBackend::sum_of_squares(std::span<const float> x) {
  auto* const partial = reinterpret_cast<double*>(grown(sums_, kSquaresWorkspace + sizeof(double)));
  double* const sum = partial + kSquaresWorkspace / sizeof(double);
  check(cuda::sum_of_squares(x.data(), static_cast<std::int64_t>(x.size()), partial, sum, stream()),
        "sum_of_squares");
  double result = 0.0;
  copy_out(&result, sum, sizeof result);
  return result;
}

void CudaBackend::adamw(const AdamWArgs& args) {
  check(cuda::adamw(args, stream()), "adamw");
}

}  // namespace inkling::cuda
