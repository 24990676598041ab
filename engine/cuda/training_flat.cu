// The training ops over flat buffers, and the gradient of an embedding.
#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <cmath>

#include "engine/cuda/chain.cuh"
#include "engine/cuda/element.cuh"
#include "engine/cuda/launch.cuh"
#include "engine/cuda/rows.cuh"
#include "engine/cuda/training_kernels.h"

namespace inkling::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kSquareBlocks = static_cast<int>(kSquaresWorkspace / sizeof(double));

/// The sum of a block's values, by warps, then over warps in order; in thread 0.
__device__ inline double block_sum(double value) {
  __shared__ double parts[kBlock / kWarp];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0.0;
  for (const double part : parts) sum += part;
  return sum;
}

__global__ void __launch_bounds__(kBlock) squares_kernel(const float* x, std::int64_t n, double* partial) {
  start_next();
  wait_for_inputs();
  double sum = 0.0;
  const std::int64_t fours = reinterpret_cast<std::uintptr_t>(x) % 16 == 0 ? n / 4 : 0;
  const std::int64_t first = std::int64_t{blockIdx.x} * kBlock + threadIdx.x,
                     all = std::int64_t{gridDim.x} * kBlock;
#pragma unroll 4
  for (std::int64_t i = first; i < fours; i += all) {
    const float4 v = reinterpret_cast<const float4*>(x)[i];
    // Four squares in f32 lose 2^-23 of their sum.
    sum += static_cast<double>((v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w));
  }
  for (std::int64_t i = fours * 4 + first; i < n; i += all) sum += static_cast<double>(x[i] * x[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kBlock) add_squares_kernel(const double* partial, double* to) {
  start_next();
  wait_for_inputs();
  double sum = 0.0;
  for (int i = threadIdx.x; i < kSquareBlocks; i += kBlock) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *to = sum;
}

/// AdamW's rates in f32 (training_ops.h).
struct Rates {
  float gradient_scale, decay, to_m, beta2, to_v, rate, inverse_root, epsilon;
};

__device__ inline void update(const Rates& s, float& parameter, float gradient, float& m, float& v) {
  const float g = gradient * s.gradient_scale;
  m = fmaf(s.to_m, g - m, m);
  v = fmaf(s.to_v * g, g, s.beta2 * v);
  parameter = fmaf(-s.rate, m / fmaf(sqrtf(v), s.inverse_root, s.epsilon), parameter * s.decay);
}

/// Rounded: the 16-bit type that the parameter is written in as well; float: none. `fours`: all begin with a
/// whole four.
template <class Rounded>
__global__ void __launch_bounds__(kBlock)
    adamw_kernel(const Rates s, float* parameter, const float* gradient, float* m, float* v, std::int64_t n,
                 Rounded* rounded, bool fours) {
  start_next();
  wait_for_inputs();
  const std::int64_t i = 4 * (std::int64_t{blockIdx.x} * kBlock + threadIdx.x);
  if (fours && i + 4 <= n) {
    float4 p4 = *reinterpret_cast<float4*>(parameter + i), m4 = *reinterpret_cast<float4*>(m + i),
           v4 = *reinterpret_cast<float4*>(v + i);
    const float4 g4 = *reinterpret_cast<const float4*>(gradient + i);
    update(s, p4.x, g4.x, m4.x, v4.x);
    update(s, p4.y, g4.y, m4.y, v4.y);
    update(s, p4.z, g4.z, m4.z, v4.z);
    update(s, p4.w, g4.w, m4.w, v4.w);
    *reinterpret_cast<float4*>(parameter + i) = p4;
    *reinterpret_cast<float4*>(m + i) = m4;
    *reinterpret_cast<float4*>(v + i) = v4;
    if constexpr (sizeof(Rounded) == 2) {
      *reinterpret_cast<uint2*>(rounded + i) =
          make_uint2(pack2<Rounded>(p4.x, p4.y), pack2<Rounded>(p4.z, p4.w));
    }
    return;
  }
  for (std::int64_t j = i; j < min(i + 4, n); ++j) {
    update(s, parameter[j], gradient[j], m[j], v[j]);
    if constexpr (sizeof(Rounded) == 2) rounded[j] = from_float<Rounded>(parameter[j]);
  }
}

__global__ void count_up_kernel(std::int32_t* to, std::int64_t n) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i < n) to[i] = static_cast<std::int32_t>(i);
}

constexpr int kChunk = 64;  // sorted rows that one block adds up

/// The columns [c, c + 4) of a row of floats += v.
__device__ inline void add4(const Matrix& table, std::int64_t row, std::int64_t c, const float (&v)[4]) {
  float* const to = static_cast<float*>(table.data) + row * table.stride + c;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (c + e < table.columns) to[e] += v[e];
  }
}

/// A warp per row i of the sorted keys and 4·kWarp columns. The first row of each key, and of each chunk,
/// adds those of its key in its chunk, in their order; the others leave. A key within one chunk goes to its
/// row of the table; of others each chunk's sum goes to partial[2·chunk + (the key began inside of it)].
template <class T>
__global__ void __launch_bounds__(kWarp)
    gather_kernel(const Matrix dout, const std::int32_t* keys, const std::int32_t* rows, const Matrix table,
                  const Matrix partial) {
  const std::int64_t i = blockIdx.x, chunk = i / kChunk, limit = min((chunk + 1) * kChunk, dout.rows);
  const std::int32_t key = keys[i];
  const bool continues = i > 0 && keys[i - 1] == key;
  if (continues && i % kChunk != 0) return;
  std::int64_t end = i + 1;
  while (end < limit && keys[end] == key) ++end;
  const std::int64_t c = std::int64_t{blockIdx.y} * 4 * kWarp + 4 * threadIdx.x;
  float sums[4] = {};
#pragma unroll 4
  for (std::int64_t j = i; j < end; ++j) {
    const T* const from = static_cast<const T*>(dout.data) + rows[j] * dout.stride + c;
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[e] += c + e < dout.columns ? to_float(from[e]) : 0.0f;
  }
  const bool goes_on = end == limit && end < dout.rows && keys[end] == key;
  if (!continues && !goes_on) return add4(table, key, c, sums);
  float* const to =
      static_cast<float*>(partial.data) + (2 * chunk + (i % kChunk != 0 ? 1 : 0)) * partial.stride + c;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (c + e < partial.columns) to[e] = sums[e];
  }
}

/// A warp per chunk: adds the sums of the key that goes on beyond it, if it began there, chunk by chunk.
__global__ void __launch_bounds__(kWarp)
    join_kernel(const std::int32_t* keys, std::int64_t count, const Matrix table, const Matrix partial) {
  const std::int64_t chunk = blockIdx.x, begin = chunk * kChunk, next = begin + kChunk;
  if (next >= count || keys[next] != keys[next - 1]) return;
  const std::int32_t key = keys[next];
  const bool from_start = keys[begin] == key;
  if (from_start && begin > 0 && keys[begin - 1] == key) return;  // an earlier chunk's
  const std::int64_t c = std::int64_t{blockIdx.y} * 4 * kWarp + 4 * threadIdx.x;
  float sums[4] = {};
  const auto add = [&](std::int64_t slot) {
    const float* const from = static_cast<const float*>(partial.data) + slot * partial.stride + c;
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[e] += c + e < partial.columns ? from[e] : 0.0f;
  };
  add(2 * chunk + (from_start ? 0 : 1));
  for (std::int64_t later = chunk + 1; later * kChunk < count && keys[later * kChunk] == key; ++later)
    add(2 * later);
  add4(table, key, c, sums);
}

std::size_t round_up(std::size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

/// Where gather_rows() keeps what it sorts.
struct Sorting {
  std::int32_t *rows, *sorted_keys, *sorted_rows;
  Matrix partial;
  void* scratch;
  std::size_t scratch_bytes = 0, bytes = 0;

  Sorting(void* memory, std::int64_t count, std::int64_t columns) {
    const std::size_t list = round_up(static_cast<std::size_t>(count) * sizeof(std::int32_t));
    partial.rows = 2 * ((count + kChunk - 1) / kChunk);
    partial.columns = partial.stride = columns;
    const std::size_t sums = round_up(static_cast<std::size_t>(partial.rows * columns) * sizeof(float));
    auto* const at = static_cast<std::byte*>(memory);
    rows = reinterpret_cast<std::int32_t*>(at);
    sorted_keys = reinterpret_cast<std::int32_t*>(at + list);
    sorted_rows = reinterpret_cast<std::int32_t*>(at + 2 * list);
    partial.data = at + 3 * list;
    scratch = at + 3 * list + sums;
    cub::DeviceRadixSort::SortPairs(nullptr, scratch_bytes, sorted_keys, sorted_keys, rows, sorted_rows,
                                    static_cast<int>(count));
    bytes = 3 * list + sums + scratch_bytes;
  }
};

}  // namespace

cudaError_t sum_of_squares(const float* x, std::int64_t n, double* workspace, double* sum,
                           cudaStream_t stream) {
  const cudaError_t error = launch_chained(squares_kernel, kSquareBlocks, kBlock, 0, stream, x, n, workspace);
  if (error != cudaSuccess) return error;
  return launch_chained(add_squares_kernel, 1u, kBlock, 0, stream, static_cast<const double*>(workspace),
                        sum);
}

cudaError_t adamw(const AdamWArgs& args, cudaStream_t stream) {
  const auto step = static_cast<double>(args.step);
  const Rates s{args.gradient_scale,
                static_cast<float>(1.0 - args.learning_rate * args.weight_decay),
                static_cast<float>(1.0 - args.beta1),
                static_cast<float>(args.beta2),
                static_cast<float>(1.0 - args.beta2),
                static_cast<float>(args.learning_rate / (1.0 - std::pow(args.beta1, step))),
                static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(args.beta2, step))),
                static_cast<float>(args.epsilon)};
  const auto n = static_cast<std::int64_t>(args.parameter.size());
  const auto whole = [](const void* data) { return in_fours(data, 0, sizeof(float)); };
  const bool fours = whole(args.parameter.data()) && whole(args.gradient.data()) && whole(args.m.data()) &&
                     whole(args.v.data()) &&
                     in_fours(args.rounded.data, 0, static_cast<int>(dtype_size(args.rounded.dtype)));
  return with_type(args.rounded.data != nullptr ? args.rounded.dtype : DType::f32, [&](auto type) {
    using Rounded = decltype(type);
    return launch_chained(adamw_kernel<Rounded>, blocks_for(n, 4 * kBlock), kBlock, 0, stream, s,
                          args.parameter.data(), args.gradient.data(), args.m.data(), args.v.data(), n,
                          static_cast<Rounded*>(args.rounded.data), fours);
  });
}

std::size_t gather_rows_bytes(std::int64_t rows, std::int64_t columns) {
  return Sorting(nullptr, rows, columns).bytes;
}

cudaError_t gather_rows(const Matrix& dout, const std::int32_t* keys, const Matrix& table, void* workspace,
                        cudaStream_t stream) {
  const std::int64_t count = dout.rows;
  Sorting s(workspace, count, dout.columns);
  cudaError_t error = launch(count_up_kernel, blocks_for(count, kBlock), kBlock, 0, stream, s.rows, count);
  if (error != cudaSuccess) return error;
  error = cub::DeviceRadixSort::SortPairs(s.scratch, s.scratch_bytes, keys, s.sorted_keys, s.rows,
                                          s.sorted_rows, static_cast<int>(count), 0, 32, stream);
  if (error != cudaSuccess) return error;
  const unsigned across = blocks_for(dout.columns, 4 * kWarp);
  error = with_type(dout.dtype, [&](auto type) {
    return launch(gather_kernel<decltype(type)>, dim3(static_cast<unsigned>(count), across), kWarp, 0, stream,
                  dout, s.sorted_keys, s.sorted_rows, table, s.partial);
  });
  if (error != cudaSuccess) return error;
  return launch(join_kernel, dim3(blocks_for(count, kChunk), across), kWarp, 0, stream, s.sorted_keys, count,
                table, s.partial);
}

}  // namespace inkling::cuda
