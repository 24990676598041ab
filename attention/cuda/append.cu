// New keys and values into the pages of the cache. Bound by memory: each is read and written once.
#include "attention/cuda/launch.cuh"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {
namespace {

constexpr int kThreads = 256;

/// T: what is copied at a time; strides and D count those.
template <class T>
__global__ void append_kernel(const __grid_constant__ AppendArgs a) {
  start_next();
  const int row = blockIdx.x, width = a.kv_heads * a.dim;
  int b = 0;  // the sequence of the row: the last that begins at or before it
  for (int step = a.batch; step > 0; step = step > 1 ? (step + 1) / 2 : 0) {
    while (b + step < a.batch && a.fresh.cu_new[b + step] <= row) b += step;
  }
  const int token = a.fresh.length[b] + row - a.fresh.cu_new[b];
  auto* page = const_cast<std::byte*>(a.pages.table[b * a.pages.table_stride + token / 64]);
  auto* const k = reinterpret_cast<T*>(page + a.pages.k_offset);
  auto* const v = reinterpret_cast<T*>(page + a.pages.v_offset);
  wait_for_inputs();
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const int head = i / a.dim, d = i % a.dim;
    const std::int64_t to = token % 64 * a.pages.token + head * a.pages.head + d;
    k[to] = static_cast<const T*>(a.fresh.k.data)[row * a.fresh.k.row + head * a.fresh.k.head + d];
    v[to] = static_cast<const T*>(a.fresh.v.data)[row * a.fresh.v.row + head * a.fresh.v.head + d];
  }
}

}  // namespace

cudaError_t append(const AppendArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows));
  const std::size_t size = dtype_size(args.dtype);
  if (is_wide(args.fresh.k, args.dim, size) && is_wide(args.fresh.v, args.dim, size) &&
      is_wide({nullptr, args.pages.token, args.pages.head}, args.dim, size)) {
    AppendArgs wide = args;
    const auto per = static_cast<std::int32_t>(16 / size);
    for (std::int64_t* stride : {&wide.fresh.k.row, &wide.fresh.k.head, &wide.fresh.v.row, &wide.fresh.v.head,
                                 &wide.pages.token, &wide.pages.head}) {
      *stride /= per;
    }
    wide.dim /= per;
    return launch_chained(append_kernel<uint4>, grid, kThreads, 0, stream, wide);
  }
  if (size == 2) return launch_chained(append_kernel<std::uint16_t>, grid, kThreads, 0, stream, args);
  return launch_chained(append_kernel<std::uint32_t>, grid, kThreads, 0, stream, args);
}

}  // namespace inkling::cuda
