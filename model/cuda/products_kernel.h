// The kernel of fused_products() as a function over device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine/activation.h"
#include "engine/dtype.h"

namespace inkling::cuda {

/// The products between two attentions, in their order: those of a layer behind its attention, and the next
/// layer's queries, keys and values.
enum BatchProduct : int { kAfterAttention, kIntoMlp, kOutOfMlp, kBeforeAttention, kBatchProducts };

inline constexpr int kMostBatchRows = 16;  // of a tile of mma.sync
inline constexpr int kBatchWidth = 768;    // C
inline constexpr int kBatchInner = 4 * kBatchWidth;

/// Rows of 16-bit elements in device memory; strides in elements, multiples of 8.
struct BatchRows {
  void* data = nullptr;
  std::int64_t stride = 0;
};

/// stream += attended · W₀;  stream += act(norm(stream) · W₁) · W₂;  qkv = norm(stream) · W₃, or a part of
/// that: products [begin, end). C = 768, I = 3072. The first launch of a step takes kBeforeAttention alone.
struct FusedProducts {
  DType dtype = DType::bf16;  ///< of weights and 16-bit rows
  int rows = 0;               ///< 1 … 16
  int begin = 0, end = kBatchProducts;
  BatchRows weight[kBatchProducts];           ///< (N, K)
  const float* bias[kBatchProducts] = {};     ///< (N) or null
  const float *gain[2] = {}, *shift[2] = {};  ///< (C) of the norms before kIntoMlp and kBeforeAttention
  float epsilon = 0;
  Activation activation = Activation::none;
  BatchRows attended, qkv;        ///< (rows, C), (rows, 3C); may share memory
  const float* stream = nullptr;  ///< (rows, C)
  float* out = nullptr;           ///< (rows, C): the stream with what is added to it; may be `stream`
  std::int64_t stream_stride = 0, out_stride = 0;
  void* workspace = nullptr;  ///< fused_products_workspace() bytes; the kernel's own
  int launch = 0;             ///< its number in the step
};

std::size_t fused_products_workspace();
/// "" when the current device can run the kernel, else why not.
const char* fused_products_device_refusal(DType dtype);
cudaError_t run_products(const FusedProducts& args, cudaStream_t stream);

}  // namespace inkling::cuda
