// Instances of the Hopper forward kernel, its tensor maps, and when it can run.
#include "attention/cuda/forward_hopper.cuh"

#include <utility>

#include "attention/cuda/launch.cuh"
#include "engine/cuda/tensor_map.cuh"

namespace inkling::cuda {
namespace {

template <class T, int kDim>
cudaError_t run(const ForwardArgs& a, cudaStream_t stream) {
  using Shape = HopperShape<kDim>;
  EncodeTiled encode = nullptr;
  if (const cudaError_t found = find_encoder(encode); found != cudaSuccess) return found;
  HopperMaps maps;
  const auto tensor = [&](const HeadRows& rows, std::int64_t count, std::int64_t heads) {
    return TensorRows{rows.data, a.dtype, rows.row, rows.head, count, heads, a.dim};
  };
  cudaError_t error =
      encode_rows(encode, maps.q, tensor(a.q, a.q_rows, a.heads), Shape::kRows, Shape::kColumns);
  for (const auto& [map, rows] : {std::pair{&maps.k, &a.k}, std::pair{&maps.v, &a.v}}) {
    if (error != cudaSuccess) break;
    error = encode_rows(encode, *map, tensor(*rows, a.k_rows, a.kv_heads), Shape::kKeys, Shape::kColumns);
  }
  if (error != cudaSuccess) return error;
  const bool wide_out = a.out_dtype == a.dtype && is_wide(a.out, a.dim, 2);
  const dim3 grid(a.tile_count);
  const auto start = [&](auto* kernel) {
    return launch_chained(kernel, grid, Shape::kThreads, Shape::kBytes, stream, a, maps, wide_out);
  };
  if (a.dropout.threshold == 0) return start(forward_hopper_kernel<T, kDim, Drawing::none>);
  if constexpr (kDim <= 64) {
    if (reads_drawn(a)) return start(forward_hopper_kernel<T, kDim, Drawing::before>);
  }
  return start(forward_hopper_kernel<T, kDim, Drawing::here>);
}

template <class T>
cudaError_t run(const ForwardArgs& a, cudaStream_t stream) {
  if (a.dim <= 32) return run<T, 32>(a, stream);
  if (a.dim <= 64) return run<T, 64>(a, stream);
  return run<T, 128>(a, stream);
}

}  // namespace

std::string hopper_refusal(const ForwardArgs& a, const DeviceTraits& traits) {
  if (!traits.no_hopper.empty()) return std::string(traits.no_hopper);
  if (a.dtype == DType::f32) return "f32, needs bf16 or f16";
  if (a.dim % 8 != 0 || a.dim > 128)
    return "D=" + std::to_string(a.dim) + ", needs a multiple of 8 up to 128";
  if (a.mask.extras())
    return "the mask " + std::string(mask_kind_name(a.mask.kind)) + " looks at single scores";
  if (a.pages.table != nullptr) return "keys are paged";
  if (!(a.scale > 0.0f)) return "the scale is not positive";
  if (a.k_rows == 0 || a.q_rows == 0) return "no rows";
  if (!is_wide(a)) return "rows do not start at multiples of 16 bytes";
  for (const HeadRows* rows : {&a.q, &a.k, &a.v}) {
    if (rows->row <= 0 || rows->head <= 0) return "a stride is not positive";
  }
  return {};
}

cudaError_t forward_hopper(const ForwardArgs& args, const DeviceTraits&, cudaStream_t stream) {
  if (args.tile_count == 0) return cudaSuccess;
  return args.dtype == DType::bf16 ? run<__nv_bfloat16>(args, stream) : run<__half>(args, stream);
}

}  // namespace inkling::cuda
