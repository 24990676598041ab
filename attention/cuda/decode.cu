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

#include "attention/cuda/decode_results.cuh"
#include "attention/cuda/launch.cuh"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {
namespace {

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

/// Leaves the partial results of the warp's keys, or with one chunk the results.
template <class T, int kDim, bool kGeneral, class LoadKeys>
__device__ inline void attend_chunk(const ForwardArgs& a, const DecodePlan& plan, const DecodeUnit& unit,
                                    const T* q, const T* k, const T* v, const LoadKeys& load_next_keys) {
  ChunkRows<kDim> rows;
  read_chunk<T, kDim, kGeneral>(rows, a, unit, q, k, v, load_next_keys);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = threadIdx.x % kWarp / 4 + 8 * r, t = threadIdx.x % 4;
    if (row >= unit.rows) continue;
    const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan.chunks + unit.chunk;
    if (unit.chunks > 1) {
      if (t == 0) plan.stats[at] = make_float2(rows.top[r], rows.sum[r]);
    } else if (t == 0) {
      write_lse(a, unit, row, rows.top[r], rows.sum[r]);
    }
    if (unit.chunks > 1) {
      float* values = plan.values + at * kDim + 2 * t;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(values + n * 8) =
            make_float2(rows.value[n][2 * r], rows.value[n][2 * r + 1]);
      }
      continue;
    }
    const float factor = rows.factor(r);
    const bool as_f32 = a.out_dtype == DType::f32;
    char* const to = row_address(a.out, unit.q_begin + unit.query(row), unit.head(row),
                                 as_f32 ? sizeof(float) : sizeof(T));
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      store_pair<T>(to, as_f32, n * 8 + 2 * t, a.dim, plan.paired, rows.value[n][2 * r] * factor,
                    rows.value[n][2 * r + 1] * factor);
    }
  }
}

/// The result of one row from all its partial results.
template <int kDim>
__device__ inline void fold_row(const ForwardArgs& a, const DecodePlan& plan, const DecodeUnit& unit,
                                int row) {
  const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan.chunks;
  constexpr int kTogether = 4;
  Partials<kTogether> partials{plan.stats + at, plan.values + at * kDim, kDim, {}};
  const float2 total = fold_chunks<kDim, kTogether>(unit.chunks, partials, [&](int d, const float(&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) write_value(a, unit, row, d + e, v[e]);
  });
  if (threadIdx.x % kWarp == 0) write_lse(a, unit, row, total.x, total.y);
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
  if (decodes_few(a, plan, traits)) return decode_few(a, plan, traits, stream);
  return with_type(a.dtype, [&](auto type) { return run<decltype(type)>(a, plan, traits, stream); });
}

}  // namespace inkling::cuda
