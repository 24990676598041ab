// Decode of many sequences: memory streams all the time.
//
// All chunks, counted by sequence, key/value head and position, are cut into runs of equal length, one for
// each warp of a wave. A warp has a tile for K and one for V; as soon as the scores are there it asks for the
// next chunk's K, and for its V behind the values. Partial results go to device memory, and of a
// head's warps the one that arrives last folds them. Which warp takes what changes no bits: a chunk is a
// chunk, and the fold has one order.
//
// Little is done per chunk beside the products, and nothing that waits: with few warps a processor, straight
// code is bound by how fast instructions come.
#pragma once

#include "attention/cuda/decode_few.cuh"
#include "engine/cuda/chain.cuh"

namespace inkling::cuda {

/// Chunks of a head of a sequence, if the sequence is decode's.
__device__ inline int stream_chunks(const ForwardArgs& a, int sequence) {
  const int rows = (a.cu_q[sequence + 1] - a.cu_q[sequence]) * (a.heads / a.kv_heads);
  if (rows == 0 || rows > kFewRows) return 0;
  return max(1, (keys_in(a, sequence) + kDecodeChunk - 1) / kDecodeChunk);
}

/// Where a warp is in its run of chunks.
struct StreamPlace {
  int left;  // chunks of the run from here on
  int sequence, kv_head, chunk;
  int chunks, keys, old;  // of the sequence: all keys, and those in the cache already
  int low, high;          // every query sees keys low … high − 1
  int q_begin, rows;

  /// The beginning of run `run` of `runs`. By a whole warp.
  __device__ StreamPlace(const ForwardArgs& a, int run, int runs) {
    const int lane = threadIdx.x % kWarp;
    int total = 0;
    for (int b = lane; b < a.batch; b += kWarp) total += stream_chunks(a, b);
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) total += __shfl_xor_sync(0xffffffffu, total, d);
    const auto from = [&](int i) { return static_cast<int>(std::int64_t{total} * a.kv_heads * i / runs); };
    int begin = from(run), first = 0;
    left = from(run + 1) - begin;
    if (left == 0) return;
#pragma unroll 1
    for (;; first += kWarp) {
      const int mine = first + lane < a.batch ? stream_chunks(a, first + lane) * a.kv_heads : 0;
      int until = mine;
#pragma unroll
      for (int d = 1; d < kWarp; d *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, until, d);
        until += lane >= d ? other : 0;
      }
      const unsigned beyond = __ballot_sync(0xffffffffu, until > begin);
      if (beyond != 0) {
        const int at = __ffs(beyond) - 1;
        first += at;
        begin -= __shfl_sync(0xffffffffu, until - mine, at);
        break;
      }
      begin -= __shfl_sync(0xffffffffu, until, kWarp - 1);
    }
    enter(a, first);
    kv_head = begin / chunks;
    chunk = begin % chunks;
  }
  /// To the first sequence from `first` on that has chunks.
  __device__ void enter(const ForwardArgs& a, int first) {
    for (sequence = first; (chunks = stream_chunks(a, sequence)) == 0;) ++sequence;
    q_begin = a.cu_q[sequence];
    const int queries = a.cu_q[sequence + 1] - q_begin;
    rows = queries * (a.heads / a.kv_heads);
    keys = keys_in(a, sequence);
    old = a.fresh.cu_new != nullptr ? a.fresh.length[sequence] : keys;
    const KeyWindow window = key_window(a.mask.kind, a.mask.left, a.mask.right, queries, keys);
    low = queries - 1 + window.from;
    high = min(window.until, keys);
    kv_head = chunk = 0;
  }
  __device__ void advance(const ForwardArgs& a) {
    --left;
    if (++chunk < chunks) return;
    chunk = 0;
    if (++kv_head < a.kv_heads || left == 0) return;
    enter(a, sequence + 1);
  }
  __device__ bool is_whole() const {
    return chunk * kDecodeChunk >= low && (chunk + 1) * kDecodeChunk <= high;
  }
  __device__ DecodeUnit unit(const ForwardArgs& a, const DecodePlan& plan) const {
    const int group = a.heads / a.kv_heads;
    const std::int64_t partial =
        (static_cast<std::int64_t>(sequence) * a.kv_heads + kv_head) * plan.rows * plan.chunks;
    return {sequence, kv_head, chunk, chunks, rows / group, keys, q_begin, group, rows, partial};
  }
};

template <class T>
class StreamWarp {
 public:
  __device__ StreamWarp(const ForwardArgs& a, const DecodePlan& plan, unsigned char* tiles)
      : a_(a), plan_(plan), tiles_(tiles), lane_(threadIdx.x % kWarp) {
    const int group = a.heads / a.kv_heads;
    query_ = lane_ / 4 / group, head_ = lane_ / 4 % group;
  }

  __device__ void run(StreamPlace here) {
    if (here.left == 0) {
      wait_for_inputs();
      return;
    }
    // What is in the cache does not wait for the kernel that makes the queries.
    const bool early = a_.fresh.cu_new != nullptr;
    find_pages(here, true);
    if (!early) wait_for_inputs();
    ask(here, 0);
    ask(here, 1);
    if (early) wait_for_inputs();
    read_queries(here);
    int first = here.chunk;
#pragma unroll 1
    for (;;) {
      StreamPlace next = here;
      next.advance(a_);
      if (next.left > 0) find_pages(next, false);
      await<1>();
      if (has_fresh(here.chunk, here.keys, here.old)) {
        await<0>();
        take_fresh(tiles_, a_, here.unit(a_, plan_), here.old);
      }
      FewRows rows;
      ChunkScores s = {};
      score_few<T>(s, q_, tiles_);
      __syncwarp();
      ask(next, 0);
      if (next.left > 0 && next.chunk == 0) read_queries(next);
      scale_few(s, a_.scale * kLog2E);
      if (!here.is_whole()) mask_few(s, a_, here.unit(a_, plan_));
      weigh_few(s, rows);
      await<1>();
      value_few<T>(rows, s, tiles_ + kTileBytes);
      __syncwarp();
      ask(next, 1);
      if (here.chunks == 1) {
        write_few<T>(a_, here.unit(a_, plan_), rows);
      } else {
        leave(here, rows);
        if (next.left == 0 || next.chunk == 0) finish(here, here.chunk + 1 - first);
      }
      if (next.left == 0) return;
      if (next.chunk == 0) first = 0;
      here = next;
    }
  }

 private:
  /// Lane i has the page of chunk 32·j + i of the place's sequence.
  __device__ void find_pages(const StreamPlace& place, bool at_once) {
    if (a_.pages.table == nullptr) return;
    if (!at_once && (place.chunk % kWarp != 0 || (place.kv_head > 0 && place.chunks <= kWarp))) return;
    const int chunk = place.chunk / kWarp * kWarp + lane_;
    if (chunk < place.chunks) page_ = a_.pages.table[place.sequence * a_.pages.table_stride + chunk];
  }

  /// K (which = 0) or V of a chunk, if the run has it.
  __device__ void ask(const StreamPlace& place, int which) const {
    const auto page =
        __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(page_), place.chunk % kWarp);
    if (place.left > 0) {
      copy_chunk(tiles_ + which * kTileBytes, a_, which, place.kv_head, place.chunk, place.keys,
                 reinterpret_cast<const std::byte*>(page),
                 a_.pages.table == nullptr ? a_.cu_k[place.sequence] : 0);
    }
    copy_commit();
  }
  __device__ void read_queries(const StreamPlace& place) {
    q_.read(row_address(a_.q, place.q_begin + query_, place.kv_head * (a_.heads / a_.kv_heads) + head_,
                        sizeof(T)),
            lane_ / 4 < place.rows);
  }

  __device__ void leave(const StreamPlace& place, const FewRows& rows) const {
    const int row = lane_ / 4, t = lane_ % 4;
    if (row >= place.rows) return;
    const std::int64_t at =
        ((static_cast<std::int64_t>(place.sequence) * a_.kv_heads + place.kv_head) * plan_.rows + row) *
            plan_.chunks +
        place.chunk;
    if (t == 0) plan_.stats[at] = make_float2(rows.top, rows.sum);
    float2* const values = reinterpret_cast<float2*>(plan_.values + at * kFewDim) + t;
#pragma unroll
    for (int n = 0; n < kFewDim / 8; ++n) values[n * 4] = make_float2(rows.value[n][0], rows.value[n][1]);
  }

  /// After the last of `count` chunks of a head that are this run's. The warp that arrives last sees the
  /// others' partial results: release and acquire by one atomic addition.
  __device__ void finish(const StreamPlace& place, int count) const {
    __syncwarp();
    int last = 1;
    if (count < place.chunks && lane_ == 0) {
      unsigned int* const counter = plan_.counters + place.sequence * a_.kv_heads + place.kv_head;
      unsigned int before;
      asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                   : "=r"(before)
                   : "l"(counter), "r"(count)
                   : "memory");
      last = before + count == static_cast<unsigned>(place.chunks);
      if (last) *counter = 0;  // ready for the next call
    }
    if (__shfl_sync(0xffffffffu, last, 0) == 0) return;
    __syncwarp();
    const DecodeUnit unit = place.unit(a_, plan_);
#pragma unroll 1
    for (int row = 0; row < unit.rows; ++row) {
      const std::int64_t at = unit.partial + static_cast<std::int64_t>(row) * plan_.chunks;
      Partials<16> partials{plan_.stats + at, plan_.values + at * kFewDim, kFewDim, {}};
      fold_few<T, 16>(a_, unit, row, partials);
    }
  }

  const ForwardArgs& a_;
  const DecodePlan& plan_;
  unsigned char* const tiles_;
  const std::byte* page_ = nullptr;
  QueryRows q_{};
  const int lane_;
  int query_, head_;  // of the lane's row, in its group
};

/// A block is a warp and has a run: so small, it finds room beside the blocks of the kernel before it, and
/// asks for its first keys while those still run. kChunkBytes of shared memory.
template <class T>
__global__ void __launch_bounds__(kWarp, 12)
    decode_stream_kernel(const __grid_constant__ ForwardArgs a, const __grid_constant__ DecodePlan plan) {
  extern __shared__ __align__(128) unsigned char memory[];
  start_next();
  StreamWarp<T>(a, plan, memory).run(StreamPlace(a, blockIdx.x, gridDim.x));
}

}  // namespace inkling::cuda
