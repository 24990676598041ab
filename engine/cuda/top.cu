// The k largest of each row of logits, a block a row.
#include "engine/cuda/chain.cuh"
#include "engine/cuda/row_select.cuh"

namespace inkling::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads, 1)
    top_kernel(const Matrix x, int k, float* values, std::int32_t* ids, bool stages) {
  extern __shared__ float4 staged[];
  __shared__ RowScratch s;
  start_next();
  wait_for_inputs();
  Row row = row_at(x, blockIdx.x);
  const Extent own = read_once(row, stages ? reinterpret_cast<float*>(staged) : nullptr);
  const Key* const largest = likeliest(row, own.largest, k, s);
  for (int i = threadIdx.x; i < k; i += kRowThreads) {
    const int index = index_of(largest[i]);
    ids[std::int64_t{blockIdx.x} * k + i] = index;
    values[std::int64_t{blockIdx.x} * k + i] = row.logit(index);
  }
}

}  // namespace

cudaError_t top(const Matrix& x, std::int64_t k, float* values, std::int32_t* ids, cudaStream_t stream) {
  const std::size_t bytes = staged_bytes(x.columns);
  return launch_chained(top_kernel, static_cast<unsigned>(x.rows), kRowThreads, bytes, stream, x,
                        static_cast<int>(k), values, ids, bytes != 0);
}

}  // namespace inkling::cuda
