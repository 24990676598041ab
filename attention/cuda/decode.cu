// Split-KV attention for few queries (Flash-Decoding, Dao et al. 2023): the time is that of reading K and V
// once.
//
// A warp takes a run of chunks of kDecodeChunk keys of one (sequence, key/value head). It asks for a whole
// chunk at once (cp.async, 16 KiB at D = 64 in 16 bits), the next before it works on the last; no barrier
// ties it to other warps. The query rows that share the key/value head, at most 16, are one tile of mma.sync:
// most of its rows are empty with one query, but two products of 16 rows are a tenth of the instructions that
// a dot product by lanes takes. The partial results (maximum, sum, values) are folded by the warp that
// arrives last, in an order fixed by the positions of the keys, so bits depend on neither the batch nor the
// number of queries. Cost: 2·Tk·D·size bytes per key/value head. Oracle: tests/attention/cuda/kernels.cu,
// f64. Measured: attention/cuda/README.md.
#include <algorithm>

#include "attention/cuda/decode_tile.cuh"
#include "attention/cuda/launch.cuh"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {
namespace {

struct DecodePlan {
  float2* stats;           // (B, Hkv, rows, chunks) maximum and sum
  float* values;           // (B, Hkv, rows, chunks, padded D)
  unsigned int* counters;  // (B, Hkv)
  int chunks, rows;        // of the workspace
  int run;                 // chunks of a warp: a matter of speed, not of bits
  bool wide, paired;       // keys and queries in 16 bytes, outputs in pairs
};

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
  if (a.lse == nullptr) return;
  a.lse[unit.head(row) * a.lse_head + (unit.q_begin + unit.query(row)) * a.lse_row] =
      sum == 0.0f ? -INFINITY : (top + log2f(sum)) * kLn2;
}

/// Scores to base 2, hidden ones to −inf.
template <bool kGeneral, int kTiles>
__device__ inline void mask_rows(float (&s)[kTiles][4], const ForwardArgs& a, const DecodeUnit& unit) {
  const int key = unit.chunk * kDecodeChunk, column = key + threadIdx.x % 4 * 2;
  const KeyWindow window = key_window(a.mask.kind, a.mask.left, a.mask.right, unit.queries, unit.keys);
  const bool whole = all_visible(window, 0, unit.queries, key, kDecodeChunk, unit.keys);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[n][i] *= a.scale * kLog2E;
  }
  if (!kGeneral && whole) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x % kWarp / 4 + 8 * r, query = unit.query(row);
    if constexpr (kGeneral) {
      const ScoreRule rule(a, unit.sequence, unit.head(row), unit.queries, unit.keys);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) s[n][2 * r + e] = rule.apply(s[n][2 * r + e], query, column + n * 8 + e);
      }
    } else {
      const int low = query + window.from - column, high = min(query + window.until, unit.keys) - column;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = n * 8 + e;
          s[n][2 * r + e] = at >= low && at < high ? s[n][2 * r + e] : -INFINITY;
        }
      }
    }
  }
}

/// Leaves the partial results of the warp's keys, or with one chunk the results.
template <class T, int kDim, bool kGeneral, class LoadKeys>
__device__ inline void attend_chunk(const ForwardArgs& a, const DecodePlan& plan, const DecodeUnit& unit,
                                    const T* q, const T* k, const T* v, const LoadKeys& load_next_keys) {
  constexpr int kStride = DecodeTile<T, kDim>::kStride;
  float s[kDecodeChunk / 8][4] = {}, out[kDim / 8][4] = {}, rescale[2];
  SoftmaxRows state;
  copy_wait<1>();  // Q and K are here
  __syncwarp();
  multiply_rows<T, kDim>(s, q, 0, k, kStride);
  __syncwarp();
  load_next_keys();
  mask_rows<kGeneral>(s, a, unit);
  online_softmax(s, state, rescale);
  copy_wait<1>();  // V, too
  __syncwarp();
  multiply_weights<T>(out, s, v, kStride, 0);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x % kWarp / 4 + 8 * r, t = threadIdx.x % 4;
    float sum = state.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (row >= unit.rows) continue;
    const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan.chunks + unit.chunk;
    if (unit.chunks > 1) {
      if (t == 0) plan.stats[at] = make_float2(state.top[r], sum);
    } else if (t == 0) {
      write_lse(a, unit, row, state.top[r], sum);
    }
    if (unit.chunks > 1) {
      float* values = plan.values + at * kDim + 2 * t;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(values + n * 8) = make_float2(out[n][2 * r], out[n][2 * r + 1]);
      }
      continue;
    }
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    const bool as_f32 = a.out_dtype == DType::f32;
    char* const to = row_address(a.out, unit.q_begin + unit.query(row), unit.head(row),
                                 as_f32 ? sizeof(float) : sizeof(T));
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      store_pair<T>(to, as_f32, n * 8 + 2 * t, a.dim, plan.paired, out[n][2 * r] * factor,
                    out[n][2 * r + 1] * factor);
    }
  }
}

/// The result of one row from all its partial results: 32 chunks at a time, a lane for the weight of each.
template <int kDim>
__device__ inline void fold_row(const ForwardArgs& a, const DecodePlan& plan, const DecodeUnit& unit,
                                int row) {
  constexpr int kRowLanes = kDim / 4 < kWarp ? kDim / 4 : kWarp, kPieces = kDim / 4 / kRowLanes;
  constexpr int kGroups = kWarp / kRowLanes;
  const int lane = threadIdx.x % kWarp, part = lane % kRowLanes, group = lane / kRowLanes;
  const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan.chunks;
  const float2* stats = plan.stats + at;
  float sum = 0.0f, value[kPieces][4] = {};
  const float2 nothing = make_float2(-INFINITY, 0.0f),
               early = lane < unit.chunks ? __ldcg(stats + lane) : nothing;
  float top = early.x;
  for (int i = lane + kWarp; i < unit.chunks; i += kWarp) top = fmaxf(top, __ldcg(stats + i).x);
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
  const float reference = top == -INFINITY ? 0.0f : top;
  for (int first = 0; first < unit.chunks; first += kWarp) {
    const int count = min(kWarp, unit.chunks - first);
    const float2 stat = first == 0 ? early : lane < count ? __ldcg(stats + first + lane) : nothing;
    const float weight = exp2_approx(stat.x - reference);
    sum = fmaf(stat.y, weight, sum);
#pragma unroll 4
    for (int i = 0; i < count; i += kGroups) {
      const float w = __shfl_sync(0xffffffffu, weight, i + group);  // zero beyond the last chunk
      const bool valid = i + group < count;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        const float* from =
            plan.values + (at + first + (valid ? i + group : i)) * kDim + (p * kRowLanes + part) * 4;
        const float4 x = __ldcg(reinterpret_cast<const float4*>(from));
        value[p][0] = fmaf(w, x.x, value[p][0]);
        value[p][1] = fmaf(w, x.y, value[p][1]);
        value[p][2] = fmaf(w, x.z, value[p][2]);
        value[p][3] = fmaf(w, x.w, value[p][3]);
      }
    }
  }
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) write_lse(a, unit, row, top, sum);
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int shift = kRowLanes; shift < kWarp; shift *= 2) {
        value[p][e] += __shfl_xor_sync(0xffffffffu, value[p][e], shift);
      }
      if (group == 0) write_value(a, unit, row, (p * kRowLanes + part) * 4 + e, value[p][e] * inverse);
    }
  }
}

/// kGeneral: masks of single scores, or rows that are not aligned. Apart, because the plain kernel must fit
/// the instruction cache.
template <class T, int kDim, bool kGeneral>
__global__ void __launch_bounds__(kWarp, 6)
    decode_kernel(const __grid_constant__ ForwardArgs a, const __grid_constant__ DecodePlan plan) {
  using Tile = DecodeTile<T, kDim>;
  extern __shared__ __align__(128) unsigned char memory[];
  DecodeUnit unit;
  unit.kv_head = blockIdx.y;
  unit.sequence = blockIdx.z;
  unit.q_begin = a.cu_q[unit.sequence];
  unit.queries = a.cu_q[unit.sequence + 1] - unit.q_begin;
  unit.keys = keys_in(a, unit.sequence);
  unit.chunks = max(1, (unit.keys + kDecodeChunk - 1) / kDecodeChunk);
  unit.group = a.heads / a.kv_heads;
  unit.rows = unit.queries * unit.group;
  unit.partial =
      (static_cast<std::int64_t>(unit.sequence) * a.kv_heads + unit.kv_head) * plan.rows * plan.chunks;
  const int begin = blockIdx.x * plan.run, end = min(begin + plan.run, unit.chunks);
  if (begin >= end || unit.rows == 0 || unit.rows > kDecodeMostRows) return;

  start_next();
  // What is in the cache does not wait for the kernel that makes the queries: it is asked for at once.
  const bool early = a.fresh.cu_new != nullptr;
  const int old = early ? a.fresh.length[unit.sequence] : unit.keys;
  if (!early) wait_for_inputs();
  const int k_begin = a.pages.table == nullptr ? a.cu_k[unit.sequence] : 0;
  const KeyRows<T> k_rows(a, a.k, a.pages.k_offset, unit.sequence, k_begin, unit.kv_head);
  const KeyRows<T> v_rows(a, a.v, a.pages.v_offset, unit.sequence, k_begin, unit.kv_head);
  T *k = reinterpret_cast<T*>(memory), *v = k + kDecodeChunk * Tile::kStride, *q = k + Tile::kChunk;
  // While a chunk is worked on, the next one's K comes as soon as its scores are there, and V after its
  // values.
  const auto load = [&](T* tile, const KeyRows<T>& rows, int chunk, int keys) {
    const int first = chunk * kDecodeChunk;
    if (chunk < end && first < keys) {
      copy_keys<T, kDim, kGeneral>(tile, rows.at(first), rows.stride, keys - first, a.dim, plan.wide);
    } else if (chunk < end) {
      copy_keys<T, kDim, kGeneral>(tile, static_cast<const T*>(a.q.data), 0, 0, a.dim,
                                   plan.wide);  // no keys: zeros
    }
    copy_commit();
  };
  if (early) {
    load(k, k_rows, begin, old);
    load(v, v_rows, begin, old);
    copy_wait<0>();
    __syncwarp();
    wait_for_inputs();
    copy_queries<T, kDim, kGeneral>(q, a, unit, plan.wide);
    const FreshUnit fresh{max(old, begin * kDecodeChunk), min(unit.keys, end * kDecodeChunk),
                          a.fresh.cu_new[unit.sequence] - old, begin * kDecodeChunk};
    take_fresh<T, kDim, kGeneral>(k, a, unit, a.fresh.k, k_rows, fresh, plan.wide);
    take_fresh<T, kDim, kGeneral>(v, a, unit, a.fresh.v, v_rows, fresh, plan.wide);
    copy_commit();
    copy_commit();  // attend_chunk() waits for all but the last
  } else {
    copy_queries<T, kDim, kGeneral>(q, a, unit, plan.wide);
    load(k, k_rows, begin, unit.keys);
    load(v, v_rows, begin, unit.keys);
  }
  for (unit.chunk = begin; unit.chunk < end; ++unit.chunk) {
    attend_chunk<T, kDim, kGeneral>(a, plan, unit, q, k, v,
                                    [&] { load(k, k_rows, unit.chunk + 1, unit.keys); });
    __syncwarp();
    load(v, v_rows, unit.chunk + 1, unit.keys);
  }
  if (unit.chunks == 1) return;

  // The warp that arrives last sees the others' partial results: release and acquire by one atomic addition.
  const auto runs = static_cast<unsigned int>((unit.chunks + plan.run - 1) / plan.run);
  unsigned int arrived = 0;
  if (runs > 1 && threadIdx.x == 0) {
    unsigned int* counter = plan.counters + unit.sequence * a.kv_heads + unit.kv_head;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(arrived) : "l"(counter) : "memory");
    if (arrived == runs - 1) *counter = 0;  // ready for the next call
  }
  if (runs > 1 && __shfl_sync(0xffffffffu, arrived, 0) != runs - 1) return;
  __syncwarp();
  for (int row = 0; row < unit.rows; ++row) fold_row<kDim>(a, plan, unit, row);
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

/// Chunks of a warp: more than one once there are enough to go round, so that starting is paid for less
/// often, but few, so that the last warps do not run alone.
int run_length(int chunks, int heads, int slots) {
  constexpr int kMost = 3;
  const std::int64_t units = static_cast<std::int64_t>(chunks) * heads;
  return static_cast<int>(std::min<std::int64_t>(kMost, (units + slots - 1) / slots));
}

template <class T, int kDim>
cudaError_t run(const ForwardArgs& a, DecodePlan plan, const DeviceTraits& traits, cudaStream_t stream) {
  using Tile = DecodeTile<T, kDim>;
  const int resident = std::max(1, static_cast<int>(traits.shared_per_block / Tile::kBytes));
  plan.run = run_length(plan.chunks, a.batch * a.kv_heads, resident * traits.processors);
  const dim3 grid((plan.chunks + plan.run - 1) / plan.run, a.kv_heads, a.batch);
  if (a.mask.extras() || !plan.wide) {
    return launch_chained(decode_kernel<T, kDim, true>, grid, kWarp, Tile::kBytes, stream, a, plan);
  }
  return launch_chained(decode_kernel<T, kDim, false>, grid, kWarp, Tile::kBytes, stream, a, plan);
}

template <class T>
cudaError_t run(const ForwardArgs& a, const DecodePlan& plan, const DeviceTraits& traits,
                cudaStream_t stream) {
  if (a.dim <= 64) return run<T, 64>(a, plan, traits, stream);
  if (a.dim <= 128) return run<T, 128>(a, plan, traits, stream);
  return run<T, 256>(a, plan, traits, stream);
}

}  // namespace

std::size_t decode_workspace_bytes(const ForwardArgs& a, const DecodeShape& shape) {
  return partials_of(a, shape) * (padded_dim(a.dim) * sizeof(float) + sizeof(float2));
}

cudaError_t decode(const ForwardArgs& a, const DecodeShape& shape, const DecodeWorkspace& workspace,
                   const DeviceTraits& traits, cudaStream_t stream) {
  if (a.batch == 0) return cudaSuccess;
  DecodePlan plan;
  plan.counters = workspace.counters;
  plan.values = static_cast<float*>(workspace.partials);
  plan.stats = reinterpret_cast<float2*>(plan.values + partials_of(a, shape) * padded_dim(a.dim));
  plan.chunks = chunks_of(shape);
  plan.rows = shape.most_rows;
  plan.paired = a.dim % 2 == 0 && a.out.row % 2 == 0 && a.out.head % 2 == 0 &&
                reinterpret_cast<std::uintptr_t>(a.out.data) % 8 == 0;
  plan.wide = is_wide(a) && (a.fresh.cu_new == nullptr || (is_wide(a.fresh.k, a.dim, dtype_size(a.dtype)) &&
                                                           is_wide(a.fresh.v, a.dim, dtype_size(a.dtype))));
  return with_type(a.dtype, [&](auto type) { return run<decltype(type)>(a, plan, traits, stream); });
}

}  // namespace inkling::cuda
