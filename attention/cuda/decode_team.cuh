// Decode of few sequences on Hopper: what counts is how long one takes.
//
// A key/value head of a sequence has a cluster of kTeam blocks. Chunk c is block c % kTeam's, and there warp
// c / kTeam % kTeamWarps's. Partial results go into the shared memory of the first block, of which a warp
// folds each row: nothing passes through device memory, and nobody waits for an atomic.
#pragma once

#include "attention/cuda/decode_few.cuh"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {

/// cluster_sync() in two halves.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Two floats to `p` in the shared memory of block `rank` of the cluster.
__device__ inline void write_cluster(const void* p, int rank, float x, float y) {
  asm volatile(
      "{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\nst.shared::cluster.v2.f32 [a], {%2, %3};\n}" ::
          "r"(shared_address(p)),
      "r"(rank), "f"(x), "f"(y)
      : "memory");
}
/// Arrives at a barrier of block `rank`, which then may read what was written there before.
__device__ inline void barrier_arrive_cluster(std::uint64_t* barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [a];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
/// barrier_wait() for what other blocks of the cluster have written.
__device__ inline void barrier_wait_cluster(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@p "
      "bra "
      "done;\nbra again;\ndone:\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

constexpr int kTeam = 8, kTeamWarps = 6, kTeamThreads = kTeamWarps * kWarp;

/// Shared memory of a block: a chunk a warp, and the partial results of a head.
constexpr std::size_t team_bytes(int rows, int chunks) {
  constexpr std::size_t kPartial = kFewDim * sizeof(float) + sizeof(float2);
  return std::size_t{kTeamWarps} * kChunkBytes +
         static_cast<std::size_t>(rows) * static_cast<std::size_t>(chunks) * kPartial;
}

/// The partial results of a row in shared memory.
struct TeamPartials {
  static constexpr int kTogether = 8;
  const float2* stats;
  const float* values;
  float4 asked[kTogether];

  __device__ float2 stat(int chunk) const { return stats[chunk]; }
  __device__ void ask(int j, int chunk, int d) {
    asked[j] = *reinterpret_cast<const float4*>(values + chunk * kFewDim + d);
  }
  __device__ void wait() const {}
  __device__ float4 value(int j) const { return asked[j]; }
};

template <class T>
class TeamWarp {
 public:
  /// chunks: of the head, none where the sequence is not decode's.
  __device__ TeamWarp(const ForwardArgs& a, const DecodePlan& plan, unsigned char* memory,
                      std::uint64_t* left)
      : a_(a),
        plan_(plan),
        tiles_(memory + threadIdx.x / kWarp * kChunkBytes),
        values_(reinterpret_cast<float*>(memory + kTeamWarps * kChunkBytes)),
        stats_(reinterpret_cast<float2*>(values_ + plan.rows * plan.chunks * kFewDim)),
        left_(left),
        lane_(threadIdx.x % kWarp) {
    unit_.kv_head = blockIdx.x;
    unit_.sequence = blockIdx.y;
    unit_.q_begin = a.cu_q[unit_.sequence];
    unit_.queries = a.cu_q[unit_.sequence + 1] - unit_.q_begin;
    unit_.keys = keys_in(a, unit_.sequence);
    unit_.group = a.heads / a.kv_heads;
    unit_.rows = unit_.queries * unit_.group;
    unit_.chunks =
        unit_.rows == 0 || unit_.rows > kFewRows ? 0 : max(1, (unit_.keys + kDecodeChunk - 1) / kDecodeChunk);
    old_ = a.fresh.cu_new != nullptr ? a.fresh.length[unit_.sequence] : unit_.keys;
    first_ = a.pages.table == nullptr ? a.cu_k[unit_.sequence] : 0;
  }
  __device__ int chunks() const { return unit_.chunks; }

  __device__ void run() {
    const int row = lane_ / 4, mine = threadIdx.x / kWarp * kTeam + blockIdx.z;
    // What is in the cache does not wait for the kernel that makes the queries.
    const bool early = a_.fresh.cu_new != nullptr;
    const std::byte* const page = page_of(mine);
    if (!early) wait_for_inputs();
    ask(0, mine, page);
    ask(1, mine, page);
    if (early) wait_for_inputs();
    QueryRows q;
    q.read(row_address(a_.q, unit_.q_begin + unit_.query(row), unit_.head(row), sizeof(T)), row < unit_.rows);
    cluster_wait();
#pragma unroll 1
    for (unit_.chunk = mine; unit_.chunk < unit_.chunks; unit_.chunk += kTeamWarps * kTeam) {
      const int next = unit_.chunk + kTeamWarps * kTeam;
      const std::byte* const next_page = page_of(next);
      await<1>();
      if (has_fresh(unit_.chunk, unit_.keys, old_)) {
        await<0>();
        take_fresh(tiles_, a_, unit_, old_);
      }
      FewRows rows;
      ChunkScores s = {};
      score_few<T>(s, q, tiles_);
      __syncwarp();
      ask(0, next, next_page);
      scale_few(s, a_.scale * kLog2E);
      mask_few(s, a_, unit_);
      weigh_few(s, rows);
      await<1>();
      value_few<T>(rows, s, tiles_ + kTileBytes);
      __syncwarp();
      ask(1, next, next_page);
      if (unit_.chunks == 1) {
        write_few<T>(a_, unit_, rows);
      } else {
        leave(rows);
      }
    }
    if (blockIdx.z == 0 && unit_.chunks > 1) fold();
  }

 private:
  const __device__ std::byte* page_of(int chunk) const {
    if (a_.pages.table == nullptr || chunk >= unit_.chunks) return nullptr;
    return a_.pages.table[unit_.sequence * a_.pages.table_stride + chunk];
  }
  /// K (which = 0) or V of a chunk, if there is one.
  __device__ void ask(int which, int chunk, const std::byte* page) const {
    if (chunk < unit_.chunks)
      copy_chunk(tiles_ + which * kTileBytes, a_, which, unit_.kv_head, chunk, unit_.keys, page, first_);
    copy_commit();
  }
  /// Into the first block.
  __device__ void leave(const FewRows& rows) const {
    const int row = lane_ / 4, t = lane_ % 4;
    if (row < unit_.rows) {
      const int at = row * plan_.chunks + unit_.chunk;
      if (t == 0) write_cluster(stats_ + at, 0, rows.top, rows.sum);
#pragma unroll
      for (int n = 0; n < kFewDim / 8; ++n)
        write_cluster(values_ + at * kFewDim + n * 8 + 2 * t, 0, rows.value[n][0], rows.value[n][1]);
    }
    __syncwarp();
    if (lane_ == 0) barrier_arrive_cluster(left_, 0);
  }
  __device__ void fold() const {
    const int warp = threadIdx.x / kWarp;
    if (warp < unit_.rows) barrier_wait_cluster(left_, 0);
#pragma unroll 1
    for (int row = warp; row < unit_.rows; row += kTeamWarps) {
      const int at = row * plan_.chunks;
      TeamPartials partials{stats_ + at, values_ + at * kFewDim, {}};
      fold_few<T, TeamPartials::kTogether>(a_, unit_, row, partials);
    }
  }

  const ForwardArgs& a_;
  const DecodePlan& plan_;
  unsigned char* const tiles_;
  float* const values_;        // (rows, chunks, D)
  float2* const stats_;        // (rows, chunks)
  std::uint64_t* const left_;  // a barrier that every chunk arrives at
  const int lane_;
  DecodeUnit unit_{};
  int old_, first_;  // keys in the cache already; the first of the packed rows
};

/// Blocks: kv head, sequence, kTeam. team_bytes() of shared memory.
template <class T>
__global__ void __launch_bounds__(kTeamThreads, 1)
    decode_team_kernel(const __grid_constant__ ForwardArgs a, const __grid_constant__ DecodePlan plan) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ std::uint64_t left;
  start_next();
  TeamWarp<T> warp(a, plan, memory, &left);
  if (threadIdx.x == 0) {
    barrier_init(&left, max(1, warp.chunks()));
    barrier_init_fence();
  }
  __syncwarp();
  cluster_arrive();
  warp.run();
#else
  __trap();
#endif
}

}  // namespace inkling::cuda
