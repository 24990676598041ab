// Split-KV attention for few queries (Flash-Decoding, Dao et al. 2023): the time is that of reading K and V
// once.
//
// A warp takes kDecodeChunk keys of one (sequence, key/value head) and asks for all of them at once
// (cp.async, 16 KiB at D = 64 in 16 bits), so that a multiprocessor has some 190 KiB in flight; no barrier
// ties it to other warps. A lane works on the 16 bytes of rows that it copied itself. The partial results
// (maximum, sum, values) are folded by the warp that arrives last, in an order fixed by the positions of the
// keys, so bits depend on neither the batch nor the number of queries. Cost: 2·Tk·D·size bytes per key/value
// head; 4·rows·Tk·D flops by FMA. Oracle: tests/attention/cuda/kernels.cu, f64. Measured:
// attention/cuda/README.md.
#include "attention/cuda/launch.cuh"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"

namespace inkling::cuda {
namespace {

/// How a warp lies over a row of kDim elements: kRowLanes lanes of kPer elements, kPieces times; kGroups rows
/// at once.
template <class T, int kDim>
struct DecodeLanes {
  static constexpr int kPer = 16 / sizeof(T);
  static constexpr int kPieces = kDim / kPer > kWarp ? kDim / kPer / kWarp : 1;
  static constexpr int kRowLanes = kDim / kPer / kPieces;
  static constexpr int kGroups = kWarp / kRowLanes;
  static constexpr int kKeys = kDecodeChunk / kGroups;  // of a lane
  static constexpr int kBytes = 2 * kDecodeChunk * kDim * sizeof(T);
  static constexpr int kWarps = kBytes <= 32 * 1024 ? 2 : 1;
};

struct DecodePlan {
  float2* stats;           // (B, Hkv, rows, chunks) maximum and sum
  float* values;           // (B, Hkv, rows, chunks, padded D)
  unsigned int* counters;  // (B, Hkv)
  int chunks, rows;        // of the workspace
  bool wide;
};

/// The share of one warp.
struct DecodeUnit {
  int sequence, kv_head, chunk, chunks, queries, keys, q_begin, group;
  std::int64_t partial;  // index of (sequence, kv_head, row 0, chunk 0)

  __device__ int head(int row) const { return kv_head * group + row % group; }
  __device__ int query(int row) const { return row / group; }
};

template <class T>
__device__ inline void unpack(const void* raw, float (&x)[16 / sizeof(T)]) {
  const uint4 bits = *static_cast<const uint4*>(raw);
  const T* elements = reinterpret_cast<const T*>(&bits);
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) x[i] = to_float(elements[i]);
}

/// 16 bytes of a row from `column` on, zero where there is nothing.
template <class T>
__device__ inline void copy_piece(T* to, const T* row, int column, int dim, bool valid, bool wide) {
  if (wide) {
    const bool inside = valid && column < dim;
    copy16_async(to, inside ? row + column : row, inside);
    return;
  }
#pragma unroll
  for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) {
    to[i] = valid && column + i < dim ? row[column + i] : from_float<T>(0.0f);
  }
}

__device__ inline void write_value(const ForwardArgs& a, const DecodeUnit& unit, int row, int d,
                                   float value) {
  if (d >= a.dim) return;
  const std::int64_t at = (unit.q_begin + unit.query(row)) * a.out.row + unit.head(row) * a.out.head + d;
  if (a.out_dtype == DType::f32) {
    static_cast<float*>(a.out.data)[at] = value;
  } else if (a.out_dtype == DType::bf16) {
    static_cast<__nv_bfloat16*>(a.out.data)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(a.out.data)[at] = __float2half_rn(value);
  }
}

__device__ inline void write_lse(const ForwardArgs& a, const DecodeUnit& unit, int row, float top,
                                 float sum) {
  if (a.lse == nullptr || threadIdx.x % kWarp != 0) return;
  a.lse[unit.head(row) * a.lse_head + (unit.q_begin + unit.query(row)) * a.lse_row] =
      sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
}

/// One row of queries against the warp's keys in shared memory: its partial result, or with one chunk the
/// result.
template <class T, int kDim>
__device__ inline void attend_row(const ForwardArgs& a, const DecodePlan& plan, const DecodeUnit& unit,
                                  int row, const T* k, const T* v) {
  using Lanes = DecodeLanes<T, kDim>;
  constexpr int kPer = Lanes::kPer, kPieces = Lanes::kPieces, kKeys = Lanes::kKeys;
  const int lane = threadIdx.x % kWarp, part = lane % Lanes::kRowLanes, group = lane / Lanes::kRowLanes;
  const int head = unit.head(row), query = unit.query(row);
  const ScoreRule rule(a, unit.sequence, head, unit.queries, unit.keys);
  const T* q_row = reinterpret_cast<const T*>(row_address(a.q, unit.q_begin + query, head, sizeof(T)));
  float q[kPieces][kPer];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      const int d = (p * Lanes::kRowLanes + part) * kPer + e;
      q[p][e] = d < a.dim ? to_float(q_row[d]) * (a.scale * kLog2E) : 0.0f;
    }
  }
  copy_wait<1>();  // K is here
  float s[kKeys], top = -INFINITY;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      float x[kPer];
      unpack<T>(k + (i * Lanes::kGroups + group) * kDim + (p * Lanes::kRowLanes + part) * kPer, x);
#pragma unroll
      for (int e = 0; e < kPer; ++e) dot = fmaf(q[p][e], x[e], dot);
    }
    s[i] = dot;
  }
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
#pragma unroll
    for (int d = Lanes::kRowLanes / 2; d > 0; d /= 2) s[i] += __shfl_xor_sync(0xffffffffu, s[i], d);
    const int key = unit.chunk * kDecodeChunk + i * Lanes::kGroups + group;
    if (a.mask.extras()) {
      s[i] = rule.apply(s[i], query, key);
    } else if (!rule.in_window(query, key)) {
      s[i] = -INFINITY;
    }
    top = fmaxf(top, s[i]);
  }
#pragma unroll
  for (int d = Lanes::kRowLanes; d < kWarp; d *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
  const float reference = top == -INFINITY ? 0.0f : top;
  float sum = 0.0f, out[kPieces][kPer] = {};
  copy_wait<0>();  // V, too
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    const float weight = exp2_approx(s[i] - reference);
    sum += weight;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      float x[kPer];
      unpack<T>(v + (i * Lanes::kGroups + group) * kDim + (p * Lanes::kRowLanes + part) * kPer, x);
#pragma unroll
      for (int e = 0; e < kPer; ++e) out[p][e] = fmaf(weight, x[e], out[p][e]);
    }
  }
#pragma unroll
  for (int d = Lanes::kRowLanes; d < kWarp; d *= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, d);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int e = 0; e < kPer; ++e) out[p][e] += __shfl_xor_sync(0xffffffffu, out[p][e], d);
    }
  }
  const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan.chunks + unit.chunk;
  if (unit.chunks == 1) {
    write_lse(a, unit, row, top, sum);
  } else if (lane == 0) {
    plan.stats[at] = make_float2(top, sum);
  }
  if (group != 0) return;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const int d = (p * Lanes::kRowLanes + part) * kPer;
#pragma unroll
    for (int e = 0; e < kPer; e += 4) {
      if (unit.chunks > 1) {
        *reinterpret_cast<float4*>(plan.values + at * kDim + d + e) =
            make_float4(out[p][e], out[p][e + 1], out[p][e + 2], out[p][e + 3]);
      } else {
#pragma unroll
        for (int f = e; f < e + 4; ++f)
          write_value(a, unit, row, d + f, sum == 0.0f ? 0.0f : out[p][f] / sum);
      }
    }
  }
}

/// The result of one row from all its partial results.
template <int kDim>
__device__ inline void fold_row(const ForwardArgs& a, const DecodePlan& plan, const DecodeUnit& unit,
                                int row) {
  constexpr int kRowLanes = kDim / 4 < kWarp ? kDim / 4 : kWarp, kPieces = kDim / 4 / kRowLanes;
  constexpr int kGroups = kWarp / kRowLanes;
  const int lane = threadIdx.x % kWarp, part = lane % kRowLanes, group = lane / kRowLanes;
  const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan.chunks;
  const float2* stats = plan.stats + at;
  float top = -INFINITY, sum = 0.0f;
  for (int i = lane; i < unit.chunks; i += kWarp) top = fmaxf(top, __ldcg(stats + i).x);
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
  const float reference = top == -INFINITY ? 0.0f : top;
  for (int i = lane; i < unit.chunks; i += kWarp) {
    const float2 stat = __ldcg(stats + i);
    sum = fmaf(stat.y, exp2_approx(stat.x - reference), sum);
  }
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  write_lse(a, unit, row, top, sum);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const int d = (p * kRowLanes + part) * 4;
    float value[4] = {};
#pragma unroll 8
    for (int i = group; i < unit.chunks; i += kGroups) {
      const float weight = exp2_approx(__ldcg(stats + i).x - reference);
      const float4 x = __ldcg(reinterpret_cast<const float4*>(plan.values + (at + i) * kDim + d));
      value[0] = fmaf(weight, x.x, value[0]);
      value[1] = fmaf(weight, x.y, value[1]);
      value[2] = fmaf(weight, x.z, value[2]);
      value[3] = fmaf(weight, x.w, value[3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int shift = kRowLanes; shift < kWarp; shift *= 2)
        value[e] += __shfl_xor_sync(0xffffffffu, value[e], shift);
      if (group == 0) write_value(a, unit, row, d + e, value[e] * inverse);
    }
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(DecodeLanes<T, kDim>::kWarps* kWarp)
    decode_kernel(const __grid_constant__ ForwardArgs a, const __grid_constant__ DecodePlan plan) {
  using Lanes = DecodeLanes<T, kDim>;
  extern __shared__ __align__(16) unsigned char memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  DecodeUnit unit;
  unit.chunk = blockIdx.x * Lanes::kWarps + warp;
  unit.kv_head = blockIdx.y;
  unit.sequence = blockIdx.z;
  unit.keys = keys_in(a, unit.sequence);
  unit.chunks = max(1, (unit.keys + kDecodeChunk - 1) / kDecodeChunk);
  if (unit.chunk >= unit.chunks) return;

  const int k_begin = a.pages.table == nullptr ? a.cu_k[unit.sequence] : 0, first = unit.chunk * kDecodeChunk;
  const KeyRows<T> k_rows(a, a.k, a.pages.k_offset, unit.sequence, k_begin, unit.kv_head);
  const KeyRows<T> v_rows(a, a.v, a.pages.v_offset, unit.sequence, k_begin, unit.kv_head);
  T *k = reinterpret_cast<T*>(memory + warp * Lanes::kBytes), *v = k + kDecodeChunk * kDim;
  const int part = lane % Lanes::kRowLanes * Lanes::kPer, group = lane / Lanes::kRowLanes;
  const auto copy_rows = [&](T* to, const KeyRows<T>& rows) {
    const T* from = unit.keys > 0 ? rows.at(first) : nullptr;
#pragma unroll
    for (int i = 0; i < Lanes::kKeys; ++i) {
      const int j = i * Lanes::kGroups + group;
      const bool valid = first + j < unit.keys;
#pragma unroll
      for (int p = 0; p < Lanes::kPieces; ++p) {
        const int column = p * Lanes::kRowLanes * Lanes::kPer + part;
        copy_piece(to + j * kDim + column, valid ? from + j * rows.stride : from, column, a.dim, valid,
                   plan.wide);
      }
    }
    copy_commit();
  };
  copy_rows(k, k_rows);
  copy_rows(v, v_rows);

  unit.q_begin = a.cu_q[unit.sequence];
  unit.queries = a.cu_q[unit.sequence + 1] - unit.q_begin;
  unit.group = a.heads / a.kv_heads;
  unit.partial =
      (static_cast<std::int64_t>(unit.sequence) * a.kv_heads + unit.kv_head) * plan.rows * plan.chunks;
  const int rows = unit.queries * unit.group;
  for (int row = 0; row < rows; ++row) attend_row<T, kDim>(a, plan, unit, row, k, v);
  copy_wait<0>();
  if (unit.chunks == 1 || rows == 0) return;

  __threadfence();
  __syncwarp();
  unsigned int arrived = 0;
  if (lane == 0) {
    unsigned int* counter = plan.counters + unit.sequence * a.kv_heads + unit.kv_head;
    arrived = atomicAdd(counter, 1u) + 1;
    if (arrived == static_cast<unsigned int>(unit.chunks)) *counter = 0;  // ready for the next call
  }
  if (__shfl_sync(0xffffffffu, arrived, 0) != static_cast<unsigned int>(unit.chunks)) return;
  __threadfence();
  for (int row = 0; row < rows; ++row) fold_row<kDim>(a, plan, unit, row);
}

int padded_dim(int dim) {
  return dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}

int chunks_of(const DecodeShape& shape) {
  return shape.most_keys > kDecodeChunk ? (shape.most_keys + kDecodeChunk - 1) / kDecodeChunk : 1;
}

std::size_t partials_of(const ForwardArgs& a, const DecodeShape& shape) {
  return static_cast<std::size_t>(a.batch) * a.kv_heads * shape.most_rows * chunks_of(shape);
}

template <class T, int kDim>
cudaError_t run(const ForwardArgs& a, const DecodePlan& plan, cudaStream_t stream) {
  using Lanes = DecodeLanes<T, kDim>;
  const dim3 grid((plan.chunks + Lanes::kWarps - 1) / Lanes::kWarps, a.kv_heads, a.batch);
  return launch(decode_kernel<T, kDim>, grid, Lanes::kWarps * kWarp, Lanes::kWarps * Lanes::kBytes, stream, a,
                plan);
}

template <class T>
cudaError_t run(const ForwardArgs& a, const DecodePlan& plan, cudaStream_t stream) {
  if (a.dim <= 64) return run<T, 64>(a, plan, stream);
  if (a.dim <= 128) return run<T, 128>(a, plan, stream);
  return run<T, 256>(a, plan, stream);
}

}  // namespace

std::size_t decode_counter_bytes(const ForwardArgs& a) {
  return (static_cast<std::size_t>(a.batch) * a.kv_heads * sizeof(unsigned int) + 255) / 256 * 256;
}

std::size_t decode_workspace_bytes(const ForwardArgs& a, const DecodeShape& shape) {
  return decode_counter_bytes(a) +
         partials_of(a, shape) * (padded_dim(a.dim) * sizeof(float) + sizeof(float2));
}

cudaError_t decode(const ForwardArgs& a, const DecodeShape& shape, void* workspace, const DeviceTraits&,
                   cudaStream_t stream) {
  if (a.batch == 0) return cudaSuccess;
  DecodePlan plan;
  plan.counters = static_cast<unsigned int*>(workspace);
  plan.values = reinterpret_cast<float*>(static_cast<std::byte*>(workspace) + decode_counter_bytes(a));
  plan.stats = reinterpret_cast<float2*>(plan.values + partials_of(a, shape) * padded_dim(a.dim));
  plan.chunks = chunks_of(shape);
  plan.rows = shape.most_rows;
  plan.wide = is_wide(a);
  switch (a.dtype) {
    case DType::bf16:
      return run<__nv_bfloat16>(a, plan, stream);
    case DType::f16:
      return run<__half>(a, plan, stream);
    default:
      return run<float>(a, plan, stream);
  }
}

}  // namespace inkling::cuda
