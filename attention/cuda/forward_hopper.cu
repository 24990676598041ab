// Instances of the Hopper forward kernel, its tensor maps, and when it can run.
#include "attention/cuda/forward_hopper.cuh"

#include "attention/cuda/launch.cuh"

namespace inkling::cuda {
namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                 CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                 CUtensorMapFloatOOBfill);

/// The driver's encoder, found through the runtime so that nothing links against the driver.
cudaError_t find_encoder(EncodeTiled& encode) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorSymbolNotFound;
  encode = reinterpret_cast<EncodeTiled>(entry);
  return cudaSuccess;
}

/// A (rows, heads, D) tensor in boxes of `box_rows` rows of one head; columns beyond D read as zero.
template <class Shape>
CUresult encode_rows(EncodeTiled encode, CUtensorMap& map, DType dtype, const HeadRows& rows, int count,
                     int heads, int dim, int box_rows) {
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(dim), static_cast<cuuint64_t>(heads),
                                static_cast<cuuint64_t>(count)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(rows.head) * 2,
                                static_cast<cuuint64_t>(rows.row) * 2};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(Shape::kColumns), 1, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1, 1};
  return encode(&map,
                dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
                rows.data, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                Shape::kRowBytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

template <class T, int kDim>
cudaError_t run(const ForwardArgs& a, cudaStream_t stream) {
  using Shape = HopperShape<kDim>;
  EncodeTiled encode = nullptr;
  if (const cudaError_t error = find_encoder(encode); error != cudaSuccess) return error;
  HopperMaps maps;
  if (encode_rows<Shape>(encode, maps.q, a.dtype, a.q, a.q_rows, a.heads, a.dim, Shape::kRows) !=
          CUDA_SUCCESS ||
      encode_rows<Shape>(encode, maps.k, a.dtype, a.k, a.k_rows, a.kv_heads, a.dim, Shape::kKeys) !=
          CUDA_SUCCESS ||
      encode_rows<Shape>(encode, maps.v, a.dtype, a.v, a.k_rows, a.kv_heads, a.dim, Shape::kKeys) !=
          CUDA_SUCCESS) {
    return cudaErrorInvalidValue;
  }
  const bool wide_out = a.out_dtype == a.dtype && is_wide(a.out, a.dim, 2);
  const dim3 grid(a.tile_count);
  if (a.dropout.threshold != 0) {
    return launch(forward_hopper_kernel<T, kDim, true>, grid, Shape::kThreads, Shape::kBytes, stream, a, maps,
                  wide_out);
  }
  return launch(forward_hopper_kernel<T, kDim, false>, grid, Shape::kThreads, Shape::kBytes, stream, a, maps,
                wide_out);
}

template <class T>
cudaError_t run(const ForwardArgs& a, cudaStream_t stream) {
  if (a.dim <= 32) return run<T, 32>(a, stream);
  if (a.dim <= 64) return run<T, 64>(a, stream);
  return run<T, 128>(a, stream);
}

}  // namespace

std::string hopper_refusal(const ForwardArgs& a, const DeviceTraits& traits) {
  if (traits.major != 9 || traits.minor != 0) {
    return "compute capability " + std::to_string(traits.major) + '.' + std::to_string(traits.minor) +
           ", needs 9.0";
  }
  if (a.dtype == DType::f32) return "f32, needs bf16 or f16";
  if (a.dim % 8 != 0 || a.dim > 128)
    return "D=" + std::to_string(a.dim) + ", needs a multiple of 8 up to 128";
  if (a.mask.extras())
    return "the mask " + std::string(mask_kind_name(a.mask.kind)) + " looks at single scores";
  if (a.pages.table != nullptr) return "keys are paged";
  if (!(a.scale > 0.0f)) return "the scale is not positive";
  if (a.k_rows == 0 || a.q_rows == 0) return "no rows";
  if (!is_wide(a)) return "rows do not start at multiples of 16 bytes";
  return {};
}

cudaError_t forward_hopper(const ForwardArgs& args, const DeviceTraits&, cudaStream_t stream) {
  if (args.tile_count == 0) return cudaSuccess;
  return args.dtype == DType::bf16 ? run<__nv_bfloat16>(args, stream) : run<__half>(args, stream);
}

}  // namespace inkling::cuda
