// Products of training: weights change from step to step, and each operand is read as it lies, whichever of
// its two axes the sum runs along.
#pragma once

#include "engine/cuda/kernels.h"

namespace inkling::cuda {

/// out (M × N) = residual + act(a · b + bias), or (a · b) · act'(slope_at), the sum of K terms in one fixed
/// order that depends on the shape alone.
struct Product {
  Matrix a;  ///< (M, K), or with a_by_k (K, M); bf16, rows at multiples of 16 bytes
  Matrix b;  ///< (N, K), or with b_by_k (K, N); likewise
  bool a_by_k = false, b_by_k = false;
  const float* bias = nullptr;
  const void* rounded_bias = nullptr;  ///< the same in bf16, which the library wants for a result in bf16
  Activation activation = Activation::none;
  Matrix residual;        ///< f32 or empty; may be out itself
  Matrix pre_activation;  ///< f32, bf16 or empty
  Matrix slope_at;        ///< dtype of out, with neither bias nor residual; or empty. The library's alone
  Matrix out;             ///< f32 or bf16
};

/// Bytes of the workspace that product() wants.
inline constexpr std::size_t kProductWorkspace = std::size_t{64} << 20;

/// Whether product() takes these here: bf16, rows aligned, no slope, compute capability 9.0.
bool takes_product(const Product& args);
/// Enqueues on `stream`; `workspace` of kProductWorkspace bytes is overwritten.
cudaError_t product(const Product& args, float* workspace, cudaStream_t stream);

}  // namespace inkling::cuda
