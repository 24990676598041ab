// What happens to single scores and weights in accumulator layout: visibility, documents, bias, dropout.
#pragma once

#include <cstdint>

#include "attention/cuda/args.h"
#include "attention/cuda/visible.h"
#include "engine/philox.h"

namespace inkling::cuda {

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// One sequence and head as single scores need them. Scores are in base 2.
struct ScoreRule {
  DeviceMask mask;
  KeyWindow window;
  int keys = 0, queries = 0;

  __device__ ScoreRule(const ForwardArgs& a, int sequence, int head, int tq, int tk)
      : mask(a.mask),
        window(key_window(a.mask.kind, a.mask.left, a.mask.right, tq, tk)),
        keys(tk),
        queries(tq) {
    if (mask.kind == MaskKind::document) {
      mask.document_q += a.cu_q[sequence];
      mask.document_k += a.cu_k[sequence];
    }
    const std::int64_t at = sequence * mask.batch + head * mask.head;
    mask.bias += mask.bias != nullptr ? at : 0;
    mask.visible += mask.visible != nullptr ? at : 0;
  }
  __device__ bool in_window(int query, int key) const {
    return key >= query + window.from && key < query + window.until && key < keys && query < queries;
  }
  /// The score of (query, key), both in their sequence; −inf when hidden.
  __device__ float apply(float score, int query, int key) const {
    if (!in_window(query, key)) return -INFINITY;
    if (mask.kind == MaskKind::document && mask.document_q[query] != mask.document_k[key]) return -INFINITY;
    if (mask.kind == MaskKind::additive_bias)
      return score + mask.bias[query * mask.row + key * mask.key] * kLog2E;
    if (mask.kind == MaskKind::boolean && mask.visible[query * mask.row + key * mask.key] == 0)
      return -INFINITY;
    return score;
  }
};

/// Where the Hopper kernels have it from which weights dropout keeps.
enum class Drawing : std::uint8_t {
  none,    ///< all are kept
  here,    ///< KeptByQuery, KeptByKey
  before,  ///< DrawnRows
};

/// Bit w of the result: whether dropout keeps key 4·group + w of a query.
__device__ inline std::uint32_t kept_nibble(const DeviceDropout& rule, std::uint32_t stream,
                                            std::uint32_t query, std::uint32_t group) {
  const PhiloxWords words = philox({group, query, stream, rule.offset}, rule.seed);
  return (words[0] >= rule.threshold ? 1u : 0u) | (words[1] >= rule.threshold ? 2u : 0u) |
         (words[2] >= rule.threshold ? 4u : 0u) | (words[3] >= rule.threshold ? 8u : 0u);
}

/// Which weights of a 16 × 8·kTiles accumulator dropout keeps. Rows are queries (query, query + 8 of this
/// lane) and columns keys from `key`, a multiple of 8. A counter gives four keys of one query: lanes 2i and
/// 2i+1 draw those of one row each and swap.
template <int kTiles>
struct KeptByQuery {
  static_assert(kTiles <= 8);
  std::uint32_t rows[2];
  int shift;

  __device__ KeptByQuery(const DeviceDropout& rule, std::uint32_t stream, int query, int key) {
    const int t = threadIdx.x % 4, odd = t & 1;
    std::uint32_t mine = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      mine |= kept_nibble(rule, stream, query + 8 * odd, key / 4 + n * 2 + t / 2) << (4 * n);
    }
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
    rows[0] = odd ? other : mine;
    rows[1] = odd ? mine : other;
    shift = 2 * odd;
  }
  __device__ bool operator()(int n, int i) const {
    return (rows[i / 2] >> (4 * n + shift + i % 2)) & 1u;
  }
};

/// The same with rows keys (key, key + 8 of this lane, key - g a multiple of 16) and columns queries from
/// `query`. The four lanes that share t and whose g differ in the low two bits need the same counters: each
/// draws one of four.
template <int kTiles>
struct KeptByKey {
  static_assert(kTiles <= 8);
  std::uint32_t
      nibbles[4];  // nibble n of nibbles[i]: this lane's key of accumulator element i is bit g % 4 of it
  int bit;

  __device__ KeptByKey(const DeviceDropout& rule, std::uint32_t stream, int key, int query) {
    const int lane = threadIdx.x % 32, t = lane % 4, c = lane / 4 % 4;  // c: which element this lane draws
    std::uint32_t mine = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      mine |= kept_nibble(rule, stream, query + n * 8 + 2 * t + c % 2, key / 4 + c / 2 * 2) << (4 * n);
    }
    const std::uint32_t from[4] = {mine, __shfl_xor_sync(0xffffffffu, mine, 4),
                                   __shfl_xor_sync(0xffffffffu, mine, 8),
                                   __shfl_xor_sync(0xffffffffu, mine, 12)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // element i was drawn by the lane whose c is i, at distance c ^ i
      const int distance = c ^ i;
      nibbles[i] = distance == 0 ? from[0] : distance == 1 ? from[1] : distance == 2 ? from[2] : from[3];
    }
    bit = c;
  }
  __device__ bool operator()(int n, int i) const {
    return (nibbles[i] >> (4 * n + bit)) & 1u;
  }
};

/// The same for one head out of memory (draw.cu): rows are queries or keys, and `bits` those that lie so.
struct DrawnBits {
  const std::uint32_t* bits = nullptr;
  std::int64_t stride = 0;  ///< words of a row
  int rows = 0;

  __device__ DrawnBits() = default;
  __device__ DrawnBits(const DeviceDropout& rule, bool by_key, int sequence, int head, int queries, int keys)
      : stride(drawn_row(by_key ? queries : keys)), rows(by_key ? keys : queries) {
    bits = rule.drawn + rule.drawn_begin[sequence] + head * drawn_words(queries, keys) +
           (by_key ? queries * drawn_row(keys) : 0);
  }
};

/// Rows (row, row + 8 of this lane) × 8·kTiles columns of them in accumulator layout.
template <int kTiles>
struct DrawnRows {
  static_assert(kTiles == 8 || kTiles == 16);
  std::uint32_t words[2][kTiles / 4];

  /// Rows beyond the last are as it is; columns are asked for from a multiple of 8·kTiles on.
  __device__ void read(const DrawnBits& from, int row, int column) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t* const at = from.bits + min(row + 8 * r, from.rows - 1) * from.stride + column / 32;
      if constexpr (kTiles == 16) {
        const uint4 all = *reinterpret_cast<const uint4*>(at);
        words[r][0] = all.x, words[r][1] = all.y, words[r][2] = all.z, words[r][3] = all.w;
      } else {
        const uint2 both = *reinterpret_cast<const uint2*>(at);
        words[r][0] = both.x, words[r][1] = both.y;
      }
    }
  }
  /// All ones where element i of tile n is kept, else zero.
  __device__ std::uint32_t element(int n, int i) const {
    const std::uint32_t from = placed(n, i / 2, i % 2);
    return signs(from, from, (8 + n % 4) * 0x1111u);
  }
  /// The same in each half for elements 2·r and 2·r + 1.
  __device__ std::uint32_t pair(int n, int r) const {
    return signs(placed(n, r, 0), placed(n, r, 1), (8 + n % 4) * 0x11u + (12 + n % 4) * 0x1100u);
  }

 private:
  /// The word of tile n with this lane's bit of each of its four tiles at the top of a byte.
  __device__ std::uint32_t placed(int n, int r, int e) const {
    return words[r][n / 4] << (7 - e - 2 * (threadIdx.x % 4));
  }
  /// Four bytes, each the sign of one of a's and b's.
  static __device__ std::uint32_t signs(std::uint32_t a, std::uint32_t b, std::uint32_t which) {
    std::uint32_t four;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(four) : "r"(a), "r"(b), "r"(which));
    return four;
  }
};

}  // namespace inkling::cuda
