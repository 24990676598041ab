// Instances of the Hopper backward kernels and when they can run.
#include "attention/cuda/backward_hopper.cuh"

#include <algorithm>
#include <initializer_list>

#include "attention/cuda/backward_begin.cuh"
#include "attention/cuda/launch.cuh"
#include "engine/cuda/tensor_map.cuh"

namespace inkling::cuda {
namespace {

template <class T, int kDim>
cudaError_t run_begin(const BackwardArgs& a, cudaStream_t stream) {
  const auto run = [&](auto* kernel) {
    return launch_chained(kernel, static_cast<unsigned>(std::max(a.query_tile_count, 1)), 128, 0, stream, a,
                          is_wide(a.forward.out, a.forward.dim, 2));
  };
  return a.forward.out_dtype == DType::f32 ? run(backward_begin_kernel<T, float, kDim>)
                                           : run(backward_begin_kernel<T, T, kDim>);
}

template <class T, int kDim, Drawing kDrawing>
cudaError_t run(const BackwardArgs& a, const BackwardMaps& maps, int processors, cudaStream_t stream) {
  using Shape = BackwardHopperShape<kDim>;
  const auto wide = [&](const HeadRows& rows) { return is_wide(rows, a.forward.dim, 2); };
  const bool wide_grads = a.grad_dtype != DType::f32 && wide(a.dq) && wide(a.dk) && wide(a.dv);
  return launch_chained(backward_hopper_kernel<T, kDim, kDrawing>,
                        static_cast<unsigned>(std::min(a.key_tile_count, processors)), Shape::kThreads,
                        Shape::kBytes, stream, a, maps, wide_grads);
}

template <class T, int kDim>
cudaError_t run(const BackwardArgs& a, int processors, cudaStream_t stream) {
  using Shape = BackwardHopperShape<kDim>;
  const ForwardArgs& f = a.forward;
  EncodeTiled encode = nullptr;
  if (const cudaError_t error = find_encoder(encode); error != cudaSuccess) return error;
  BackwardMaps maps;
  struct Side {
    const HeadRows& rows;
    int count, heads, box;
    CUtensorMap& map;
  };
  for (const Side& side : {Side{f.k, f.k_rows, f.kv_heads, Shape::kKeys, maps.own[0]},
                           Side{f.v, f.k_rows, f.kv_heads, Shape::kKeys, maps.own[1]},
                           Side{f.q, f.q_rows, f.heads, Shape::kQueries, maps.pass[0]},
                           Side{a.dout, f.q_rows, f.heads, Shape::kQueries, maps.pass[1]}}) {
    const TensorRows rows{side.rows.data, f.dtype,    side.rows.row, side.rows.head,
                          side.count,     side.heads, f.dim};
    if (const cudaError_t error = encode_rows(encode, side.map, rows, side.box, 64); error != cudaSuccess) {
      return error;
    }
  }
  if (const cudaError_t error = run_begin<T, kDim>(a, stream); error != cudaSuccess) return error;
  if (f.dropout.threshold == 0) return run<T, kDim, Drawing::none>(a, maps, processors, stream);
  if constexpr (kDim <= kMostDrawnDim) {
    if (reads_drawn(f)) return run<T, kDim, Drawing::before>(a, maps, processors, stream);
  }
  return run<T, kDim, Drawing::here>(a, maps, processors, stream);
}

template <class T>
cudaError_t run(const BackwardArgs& a, int processors, cudaStream_t stream) {
  return a.forward.dim <= 64 ? run<T, 64>(a, processors, stream) : run<T, 128>(a, processors, stream);
}

}  // namespace

std::string backward_hopper_refusal(const BackwardArgs& a, const DeviceTraits& traits) {
  if (std::string reason = hopper_refusal(a.forward, traits); !reason.empty()) return reason;
  if (!is_wide(a.dout, a.forward.dim, 2)) return "rows of dout do not start at multiples of 16 bytes";
  if (a.dout.row <= 0 || a.dout.head <= 0) return "a stride of dout is not positive";
  return {};
}

std::size_t backward_workspace_bytes(const BackwardArgs& a, const DeviceTraits& traits) {
  if (backward_hopper_refusal(a, traits).empty()) {
    return a.forward.dim <= 64 ? BackwardSlots<64>::bytes(a) : BackwardSlots<128>::bytes(a);
  }
  return sizeof(float) * static_cast<std::size_t>(a.forward.q_rows) *
         static_cast<std::size_t>(a.forward.heads);
}

cudaError_t backward_hopper(const BackwardArgs& a, const DeviceTraits& traits, cudaStream_t stream) {
  return a.forward.dtype == DType::bf16 ? run<__nv_bfloat16>(a, traits.processors, stream)
                                        : run<__half>(a, traits.processors, stream);
}

}  // namespace inkling::cuda
