// Instances of the Hopper backward kernel and when it can run.
#include "attention/cuda/backward_hopper.cuh"

#include <initializer_list>

#include "attention/cuda/launch.cuh"
#include "engine/cuda/tensor_map.cuh"

namespace inkling::cuda {
namespace {

template <class T, bool kByKey, Drawing kDrawing>
cudaError_t run(const BackwardArgs& a, const BackwardMaps& maps, cudaStream_t stream) {
  return launch(backward_hopper_kernel<T, kByKey, kDrawing>,
                dim3(kByKey ? a.key_tile_count : a.query_tile_count), 256, BackwardRing::kBytes, stream, a,
                maps);
}

template <class T, Drawing kDrawing>
cudaError_t run_both(const BackwardArgs& a, const BackwardMaps& by_key, const BackwardMaps& by_query,
                     cudaStream_t stream) {
  const cudaError_t error = run<T, true, kDrawing>(a, by_key, stream);
  return error != cudaSuccess ? error : run<T, false, kDrawing>(a, by_query, stream);
}

template <class T>
cudaError_t run(const BackwardArgs& a, const BackwardMaps& by_key, const BackwardMaps& by_query,
                cudaStream_t stream) {
  if (a.forward.dropout.threshold == 0) return run_both<T, Drawing::none>(a, by_key, by_query, stream);
  if (reads_drawn(a.forward)) return run_both<T, Drawing::before>(a, by_key, by_query, stream);
  return run_both<T, Drawing::here>(a, by_key, by_query, stream);
}

}  // namespace

std::string backward_hopper_refusal(const BackwardArgs& a, const DeviceTraits& traits) {
  if (std::string reason = hopper_refusal(a.forward, traits); !reason.empty()) return reason;
  if (a.forward.dim > 64) return "D=" + std::to_string(a.forward.dim) + ", at most 64";
  if (!is_wide(a.dout, a.forward.dim, 2)) return "rows of dout do not start at multiples of 16 bytes";
  if (a.dout.row <= 0 || a.dout.head <= 0) return "a stride of dout is not positive";
  return {};
}

cudaError_t backward_hopper(const BackwardArgs& a, cudaStream_t stream) {
  const ForwardArgs& f = a.forward;
  EncodeTiled encode = nullptr;
  if (const cudaError_t error = find_encoder(encode); error != cudaSuccess) return error;
  BackwardMaps by_key, by_query;
  struct Side {
    const HeadRows& rows;
    int count, heads;
    CUtensorMap &own, &pass;
  };
  for (const Side& side : {Side{f.k, f.k_rows, f.kv_heads, by_key.own[0], by_query.pass[0]},
                           Side{f.v, f.k_rows, f.kv_heads, by_key.own[1], by_query.pass[1]},
                           Side{f.q, f.q_rows, f.heads, by_query.own[0], by_key.pass[0]},
                           Side{a.dout, f.q_rows, f.heads, by_query.own[1], by_key.pass[1]}}) {
    const TensorRows rows{side.rows.data, f.dtype,    side.rows.row, side.rows.head,
                          side.count,     side.heads, f.dim};
    cudaError_t error = encode_rows(encode, side.own, rows, BackwardRing::kRows, 64);
    if (error == cudaSuccess) {
      error = encode_rows(encode, side.pass, rows, BackwardRing::kOther, 64);
    }
    if (error != cudaSuccess) return error;
  }
  return f.dtype == DType::bf16 ? run<__nv_bfloat16>(a, by_key, by_query, stream)
                                : run<__half>(a, by_key, by_query, stream);
}

}  // namespace inkling::cuda
