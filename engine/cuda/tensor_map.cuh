// Tensor maps: what the copy engine is told of a (rows, heads, D) tensor.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine/dtype.h"

namespace inkling::cuda {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

/// The driver's encoder, found through the runtime so that nothing links against the driver.
inline cudaError_t find_encoder(EncodeTiled& encode) {
  thread_local EncodeTiled known = nullptr;  // asking takes longer than a launch
  encode = known;
  if (known != nullptr) return cudaSuccess;
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorSymbolNotFound;
  encode = known = reinterpret_cast<EncodeTiled>(entry);
  return cudaSuccess;
}

/// A 16-bit (count, heads, dim) tensor in device memory; strides in elements, multiples of 8.
struct TensorRows {
  const void* data;
  DType dtype;
  std::int64_t row, head;
  std::int64_t count, heads, dim;
};

/// In boxes of `box_rows` rows × `box_columns` (32 or 64) columns of one head, swizzled; what lies beyond D
/// or the last row reads as zero.
inline cudaError_t encode_rows(EncodeTiled encode, CUtensorMap& map, const TensorRows& rows, int box_rows,
                               int box_columns) {
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(rows.dim), static_cast<cuuint64_t>(rows.heads),
                                static_cast<cuuint64_t>(rows.count)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(rows.head) * 2,
                                static_cast<cuuint64_t>(rows.row) * 2};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), 1, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result = encode(
      &map, rows.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
      const_cast<void*>(rows.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace inkling::cuda
