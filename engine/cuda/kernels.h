// The kernels of the plain ops as functions over device memory. Each enqueues on `stream` and returns the
// first error; none allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/cuda/start.h"
#include "engine/ops.h"

namespace inkling::cuda {

/// A strided matrix in device memory.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0, columns = 0, stride = 0;  ///< stride in elements

  Matrix() = default;
  explicit Matrix(const TensorView& v)
      : data(v.data), dtype(v.dtype), rows(v.shape[0]), columns(v.shape[1]), stride(v.stride[0]) {}
};

/// Whether every row begins at a multiple of 16 bytes, a whole piece; an empty matrix has none that does not.
inline bool in_pieces(const Matrix& m) {
  return m.stride * static_cast<std::int64_t>(dtype_size(m.dtype)) % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
}

/// out[i] = norm(x[rows[i]]) or a copy without a norm; columns beyond x's are zero. Any float dtypes.
struct NormRows {
  Matrix x;
  const std::int32_t* rows = nullptr;  ///< (out.rows) on the device, or null: all
  LayerNorm norm;
  Matrix out;
  Start start = Start::early;  ///< as far as the norm goes
};
cudaError_t norm_rows(const NormRows& args, cudaStream_t stream);

/// out = residual + act(norm(x[rows]) · wᵀ + bias). The sum over k runs in one fixed order, so that bits do
/// not depend on M.
struct Linear {
  Matrix x;  ///< (M', K), dtype of w or f32; in the dtype of w rows start at multiples of 16 bytes
  const std::int32_t* rows = nullptr;  ///< (M) rows of x, on the device, or null: all
  LayerNorm norm;                      ///< or none
  Matrix weight;                       ///< (N, stride): column n of the matrix is a row here, zeros behind K
  const float* bias = nullptr;
  Activation activation = Activation::none;
  Matrix residual;             ///< f32 or empty
  Matrix pre_activation;       ///< f32, dtype of w or empty
  Matrix out;                  ///< f32 or dtype of w
  Start start = Start::early;  ///< as far as the weight, the bias and the norm go
};
/// Whether linear() takes rows, a norm or f32 beside 16-bit weights here; elsewhere norm_rows() goes first.
bool norms_inside(const Linear& args);
cudaError_t linear(const Linear& args, cudaStream_t stream);

/// out[i] = token[ids[i]] + position[positions[i]]; ids and positions on the device.
struct Embed {
  Matrix token, position, out;
  const std::int32_t *ids = nullptr, *positions = nullptr;
};
cudaError_t embed(const Embed& args, cudaStream_t stream);

/// In place: softmax of each row, or its logarithm.
cudaError_t softmax(const Matrix& x, bool logarithm, cudaStream_t stream);
cudaError_t activate(const Matrix& x, Activation activation, cudaStream_t stream);

/// The k largest of each row, by falling value and rising index, to (M, k) of values and ids.
cudaError_t top(const Matrix& x, std::int64_t k, float* values, std::int32_t* ids, cudaStream_t stream);

/// An id for each of `count` draws by draw_rule.h; settings in device memory, host_ids in pinned host memory
/// or null.
cudaError_t draw(const Matrix& logits, const DrawSettings* settings, std::int64_t count, std::int32_t* ids,
                 std::int32_t* host_ids, cudaStream_t stream);

/// Element (k, n) of `source`, in device memory, to out[n][k]; zeros for k beyond source.k.
cudaError_t pack(const MatrixSource& source, const Matrix& out, cudaStream_t stream);

}  // namespace inkling::cuda
