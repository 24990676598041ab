// New keys and values into the pages of the cache. Bound by memory: each is read and written once.
#include "attention/cuda/launch.cuh"

namespace inkling::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void append_kernel(const AppendArgs a) {
  const int row = blockIdx.x, width = a.kv_heads * a.dim;
  int b = 0;  // the sequence of the row: the last that begins at or before it
  for (int step = a.batch; step > 0; step = step > 1 ? (step + 1) / 2 : 0) {
    while (b + step < a.batch && a.cu_new[b + step] <= row) b += step;
  }
  const int token = a.length[b] + row - a.cu_new[b];
  auto* page = const_cast<std::byte*>(a.pages.table[b * a.pages.table_stride + token / 64]);
  auto* const k = reinterpret_cast<T*>(page + a.pages.k_offset);
  auto* const v = reinterpret_cast<T*>(page + a.pages.v_offset);
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const int head = i / a.dim, d = i % a.dim;
    const std::int64_t to = token % 64 * a.pages.token + head * a.pages.head + d;
    k[to] = static_cast<const T*>(a.k.data)[row * a.k.row + head * a.k.head + d];
    v[to] = static_cast<const T*>(a.v.data)[row * a.v.row + head * a.v.head + d];
  }
}

}  // namespace

cudaError_t append(const AppendArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows));
  if (dtype_size(args.dtype) == 2)
    return launch(append_kernel<std::uint16_t>, grid, kThreads, 0, stream, args);
  return launch(append_kernel<std::uint32_t>, grid, kThreads, 0, stream, args);
}

}  // namespace inkling::cuda
