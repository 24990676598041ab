// What dropout keeps, drawn once for the three kernels that want it: Philox costs more than attention.
//
// The rule is attention/sdpa.h's: word j mod 4 of philox({j / 4, i, b·H + h, offset}, seed), kept from the
// threshold on. Of the ten rounds the first three are not done for every counter: what enters them depends on
// the key alone or on the query alone but for one product, so that 15 wide products and 17 exclusive ors are
// left of 20 and 20. A warp draws 128 queries × 64 keys, a lane four queries, whose key parts are the same;
// the bits of 32 queries × 32 keys are then turned in five steps of shuffles to lie by key.
//
// Bound by the integer products, a quarter of the rate of additions: some 65 cycles of a scheduler for 32
// counters. B = 16, H = 12, T = 1024 causal: 26.7 million counters, 55 µs by that on an H200, measured 110
// (attention/cuda/README.md). Oracle: philox() on the CPU, by tests/attention/sdpa_cuda.cpp.
#include "attention/cuda/launch.cuh"
#include "attention/cuda/visible.h"
#include "engine/cuda/chain.cuh"
#include "engine/cuda/mma.cuh"
#include "engine/philox.h"

namespace inkling::cuda {
namespace {

constexpr int kWarps = 4, kRows = forward_tile_rows(DType::bf16), kKeys = 64;
static_assert(kRows == 4 * kWarp);  // draw_block<4> draws a tile's queries, draw_block<2> half of them

/// Both keys of every round: the same for all counters.
struct RoundKeys {
  std::uint32_t low[10], high[10];

  explicit RoundKeys(std::uint64_t seed) {
    auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
      low[round] = k0, high[round] = k1;
    }
  }
};

struct Wide {
  std::uint32_t low, high;
};
__device__ inline Wide multiply(std::uint32_t a, std::uint32_t b) {
  const std::uint64_t product = std::uint64_t{a} * b;
  return {static_cast<std::uint32_t>(product), static_cast<std::uint32_t>(product >> 32)};
}

/// Sets `bit` where the word is kept: a comparison and one operation under its predicate.
template <std::uint32_t kBit>
__device__ inline void mark(std::uint32_t& bits, std::uint32_t word, std::uint32_t threshold) {
  asm("{\n\t.reg .pred kept;\n\tsetp.ge.u32 kept, %1, %2;\n\t@kept or.b32 %0, %0, %3;\n\t}"
      : "+r"(bits)
      : "r"(word), "r"(threshold), "n"(kBit));
}

/// What does not change within a head.
struct Drawer {
  const RoundKeys& keys;
  std::uint32_t offset, threshold;
  std::uint32_t query_key, third;  // what a query is combined with in round 1; that round's second word

  __device__ Drawer(const RoundKeys& round_keys, const DeviceDropout& rule, std::uint32_t stream)
      : keys(round_keys), offset(rule.offset), threshold(rule.threshold) {
    const Wide b = multiply(kPhiloxM1, stream);
    query_key = b.high ^ keys.low[0];
    third = b.low;
  }
  /// Round 2's product that depends on the query alone.
  __device__ Wide of_query(std::uint32_t query) const { return multiply(kPhiloxM0, query ^ query_key); }

  /// The counters of keys 4·group … + 3 and of `queries`, given by of_query(); their bits to kShift … + 3.
  template <int kShift, int kQueries>
  __device__ void draw(std::uint32_t (&bits)[kQueries], const Wide (&queries)[kQueries],
                       std::uint32_t group) const {
    const Wide a1 = multiply(kPhiloxM0, group), b2 = multiply(kPhiloxM1, a1.high ^ offset ^ keys.high[0]),
               a3 = multiply(kPhiloxM0, b2.high ^ third ^ keys.low[1]);
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      const Wide b3 = multiply(kPhiloxM1, queries[i].high ^ a1.low ^ keys.high[1]);
      std::uint32_t c0 = b3.high ^ b2.low ^ keys.low[2], c1 = b3.low,
                    c2 = a3.high ^ queries[i].low ^ keys.high[2], c3 = a3.low;
#pragma unroll
      for (int round = 3; round < 10; ++round) {
        const Wide a = multiply(kPhiloxM0, c0), b = multiply(kPhiloxM1, c2);
        c0 = b.high ^ c1 ^ keys.low[round], c1 = b.low;
        c2 = a.high ^ c3 ^ keys.high[round], c3 = a.low;
      }
      mark<1u << kShift>(bits[i], c0, threshold);
      mark<2u << kShift>(bits[i], c1, threshold);
      mark<4u << kShift>(bits[i], c2, threshold);
      mark<8u << kShift>(bits[i], c3, threshold);
    }
  }
};

/// Lane i has row i of 32 × 32 bits; returns its column.
__device__ inline std::uint32_t turned(std::uint32_t row) {
  const int lane = threadIdx.x % kWarp;
  constexpr std::uint32_t kLow[] = {0x55555555u, 0x33333333u, 0x0f0f0f0fu, 0x00ff00ffu, 0x0000ffffu};
#pragma unroll
  for (int i = 4; i >= 0; --i) {
    const int step = 1 << i;
    const bool upper = (lane & step) != 0;
    const std::uint32_t keep = upper ? ~kLow[i] : kLow[i], other = __shfl_xor_sync(0xffffffffu, row, step);
    row = (row & keep) | (__funnelshift_l(other, other, upper ? 32 - step : step) & ~keep);
  }
  return row;
}

/// Where the bits of one sequence and head lie.
struct Place {
  std::uint32_t *by_query, *by_key;
  int queries, keys;
};

/// A warp: 32·kQueries queries from `first` on and kKeys keys from `key` on.
template <int kQueries>
__device__ inline void draw_block(const Drawer& drawer, const Place& place, int first, int key) {
  const int lane = threadIdx.x % kWarp;
  Wide queries[kQueries];
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    queries[i] = drawer.of_query(static_cast<std::uint32_t>(first + i * kWarp + lane));
  }
  std::uint32_t kept[kKeys / 32][kQueries] = {};
#pragma unroll
  for (int word = 0; word < kKeys / 32; ++word) {
#pragma unroll 1
    for (int pair = 3; pair >= 0; --pair) {
#pragma unroll
      for (int i = 0; i < kQueries; ++i) kept[word][i] <<= 8;
      const auto group = static_cast<std::uint32_t>(key / 4 + word * 8 + pair * 2);
      drawer.draw<0>(kept[word], queries, group);
      drawer.draw<4>(kept[word], queries, group + 1);
    }
  }
  const std::int64_t query_row = drawn_row(place.keys), key_row = drawn_row(place.queries);
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    const int query = first + i * kWarp + lane;
    if (query < place.queries) {
      *reinterpret_cast<uint2*>(place.by_query + query * query_row + key / 32) =
          make_uint2(kept[0][i], kept[1][i]);
    }
  }
#pragma unroll
  for (int word = 0; word < kKeys / 32; ++word) {
#pragma unroll
    for (int i = 0; i < kQueries; i += 2) {
      const uint2 both = make_uint2(turned(kept[word][i]), turned(kept[word][i + 1]));
      const int row = key + word * 32 + lane;
      if (row < place.keys) {
        *reinterpret_cast<uint2*>(place.by_key + row * key_row + first / 32 + i) = both;
      }
    }
  }
}

/// A block per tile of queries; its warps take blocks of keys in turn. What no query sees is not drawn.
__global__ void __launch_bounds__(kWarps* kWarp, 8)
    draw_kernel(const __grid_constant__ ForwardArgs a, const __grid_constant__ RoundKeys round_keys) {
  start_next();
  wait_for_inputs();
  const AttentionTile tile = a.tiles[blockIdx.x];
  const int b = tile.sequence, first = tile.block * kRows;
  Place place;
  place.queries = a.cu_q[b + 1] - a.cu_q[b];
  place.keys = a.cu_k[b + 1] - a.cu_k[b];
  place.by_query =
      a.dropout.drawn + a.dropout.drawn_begin[b] + tile.head * drawn_words(place.queries, place.keys);
  place.by_key = place.by_query + place.queries * drawn_row(place.keys);
  const KeyWindow window = key_window(a.mask.kind, a.mask.left, a.mask.right, place.queries, place.keys);
  const auto seen = [&](int from) {
    const int to = min(from + kRows / 2, place.queries);
    return from < to ? keys_of_queries(window, from, to, place.keys) : RowSpan{};
  };
  const RowSpan upper = seen(first), lower = seen(first + kRows / 2);
  const auto meets = [](const RowSpan& span, int key) { return key < span.end && key + kKeys > span.begin; };
  const Drawer drawer(round_keys, a.dropout, static_cast<std::uint32_t>(b * a.heads + tile.head));
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll 1
  for (int key = warp * kKeys; key < place.keys; key += kWarps * kKeys) {
    const bool above = meets(upper, key), below = meets(lower, key);
    if (above && below) {
      draw_block<4>(drawer, place, first, key);
    } else if (above || below) {
      draw_block<2>(drawer, place, above ? first : first + kRows / 2, key);
    }
  }
}

}  // namespace

cudaError_t draw_dropout(const ForwardArgs& args, cudaStream_t stream) {
  return launch_chained(draw_kernel, static_cast<unsigned>(args.tile_count), kWarps * kWarp, 0, stream, args,
                        RoundKeys(args.dropout.seed));
}

}  // namespace inkling::cuda
