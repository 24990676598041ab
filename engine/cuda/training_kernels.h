// The kernels of the training ops as functions over device memory (kernels.h). f32 unless a Matrix says
// otherwise; lists lie on the device. Sums run in an order that the shapes alone decide.
#pragma once

#include <cstdint>
#include <span>

#include "engine/cuda/kernels.h"
#include "engine/training_ops.h"

namespace inkling::cuda {

/// out[j][i] = x[i][j], zeros where out has more columns than x rows. Any float dtypes.
cudaError_t transpose(const Matrix& x, const Matrix& out, cudaStream_t stream);

/// sums[c] += Σ_m x[m][c], or replaced by it. `workspace`: column_sums_bytes(x.rows, x.columns).
std::size_t column_sums_bytes(std::int64_t rows, std::int64_t columns);
cudaError_t column_sums(const Matrix& x, float* sums, bool replaces, float* workspace, cudaStream_t stream);

/// DropoutArgs, any float dtypes of x, from and normed.
struct Dropout {
  Matrix x, from, residual;
  LayerNorm norm;
  Matrix normed;                             ///< or empty; then x is f32
  const std::int32_t* cu_seqlens = nullptr;  ///< (sequences + 1)
  int sequences = 0;
  std::uint32_t threshold = 0, offset = 0;  ///< keeps words from `threshold` on
  float scale = 1.0f;
  std::uint64_t seed = 0;
};
cudaError_t dropout(const Dropout& args, cudaStream_t stream);

/// LayerNormBackwardArgs. `workspace`: layer_norm_backward_bytes(x.rows, x.columns).
struct NormBackward {
  Matrix x;
  LayerNorm norm;
  Matrix dout;  ///< any float dtype
  Matrix dx;    ///< added to
  float *dweight = nullptr, *dbias = nullptr;
  Dropout branch;         ///< from dx; without an x: none
  bool replaces = false;  ///< dweight and dbias
};
std::size_t layer_norm_backward_bytes(std::int64_t rows, std::int64_t columns);
cudaError_t layer_norm_backward(const NormBackward& args, float* workspace, cudaStream_t stream);

/// dx *= activation'(x), activated = activation(x); all of one dtype, `activated` may be empty.
cudaError_t activate_backward(const Matrix& x, Activation activation, const Matrix& dx,
                              const Matrix& activated, cudaStream_t stream);

/// CrossEntropyArgs.
cudaError_t cross_entropy(const Matrix& logits, const std::int32_t* targets, float scale, float* losses,
                          cudaStream_t stream);

/// *sum = Σ x². `workspace`: kSquaresWorkspace bytes.
inline constexpr std::size_t kSquaresWorkspace = 1024 * sizeof(double);
cudaError_t sum_of_squares(const float* x, std::int64_t n, double* workspace, double* sum,
                           cudaStream_t stream);

cudaError_t adamw(const AdamWArgs& args, cudaStream_t stream);

/// table[keys[i]] += dout[i], rows of a key in order. `workspace`: gather_rows_bytes(rows, columns of
/// dout), aligned to 256.
std::size_t gather_rows_bytes(std::int64_t rows, std::int64_t columns);
cudaError_t gather_rows(const Matrix& dout, const std::int32_t* keys, const Matrix& table, void* workspace,
                        cudaStream_t stream);

}  // namespace inkling::cuda
