// What a device kernel of attention is told: device pointers and plain numbers, no CUDA type. The contract is
// attention/sdpa.h; everything here has been checked by it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/sdpa.h"
#include "engine/dtype.h"

namespace inkling::cuda {

/// Rows of all heads; element d of (row, head) is data[row · row_stride + head · head_stride + d].
struct HeadRows {
  void* data = nullptr;
  std::int64_t row = 0, head = 0;  ///< strides in elements
};

/// Keys and values in pages of 64 tokens. Token j of sequence b lies in page table[b · table_stride + j /
/// 64], its element d of head h at byte (k|v)_offset + ((j % 64) · token + h · head + d) · size of the
/// element.
struct KvPages {
  const std::byte* const* table = nullptr;  ///< null: the rows are packed
  std::int64_t table_stride = 0;            ///< pages
  std::int64_t k_offset = 0, v_offset = 0;  ///< bytes from the start of a page: chooses the layer
  std::int64_t token = 0, head = 0;         ///< elements
};

/// New rows of keys and values that are not in their pages yet.
struct FreshRows {
  HeadRows k, v;                         ///< (N, Hkv, D) in the dtype of the pages
  const std::int32_t* cu_new = nullptr;  ///< (B+1) rows of sequence b; null: there are none
  const std::int32_t* length = nullptr;  ///< (B) tokens in the pages
};

/// One thread block's share: a run of rows (queries, or keys where the gradient of keys is asked for) of one
/// head of one sequence.
struct AttentionTile {
  std::int32_t sequence = 0, head = 0, block = 0;
};

inline constexpr std::int32_t kFar = 1 << 30;  ///< further than any row

/// inkling::Mask with device pointers.
struct DeviceMask {
  MaskKind kind = MaskKind::none;
  std::int32_t left = kFar, right = kFar;              ///< sliding_window, document: at most kFar
  const std::int32_t* document_q = nullptr;            ///< (N)
  const std::int32_t* document_k = nullptr;            ///< (S)
  const float* bias = nullptr;                         ///< additive_bias
  const std::uint8_t* visible = nullptr;               ///< boolean: zero hides
  std::int64_t batch = 0, head = 0, row = 0, key = 0;  ///< strides of bias and visible; 0 broadcasts

  /// More than a range of keys per query: kernels look at single scores.
  constexpr bool extras() const noexcept { return kind >= MaskKind::document; }
};

/// inkling::Dropout; threshold 0: none.
struct DeviceDropout {
  std::uint64_t seed = 0;
  std::uint32_t offset = 0, threshold = 0;
  float scale = 1.0f;  ///< 1 / (1 − p)
  /// Bits that say what is kept, or null: drawn where they are wanted. Of sequence b and head h, from word
  /// drawn_begin[b] + h · drawn_words() on: for each query a row of drawn_row(Tk) words, bit j % 32 of word
  /// j / 32 for key j; then for each key a row of drawn_row(Tq) words with a bit for each query.
  std::uint32_t* drawn = nullptr;
  const std::int64_t* drawn_begin = nullptr;  ///< (B)
};
constexpr std::int64_t drawn_row(std::int64_t columns) noexcept {
  return (columns + 127) / 128 * 4;
}
constexpr std::int64_t drawn_words(std::int64_t queries, std::int64_t keys) noexcept {
  return queries * drawn_row(keys) + keys * drawn_row(queries);
}

/// Whether the kernels of Hopper, forward and backward, read from memory what dropout keeps, to whose rows
/// and layout it is drawn.
inline constexpr std::int64_t kMostDrawnDim = 64;
constexpr bool reads_drawn(DType dtype, std::int64_t dim) noexcept {
  return dtype != DType::f32 && dim % 8 == 0 && dim <= kMostDrawnDim;
}

struct ForwardArgs {
  DType dtype = DType::bf16, out_dtype = DType::bf16;  ///< of q, k, v; of out (f32 or the same)
  HeadRows q, k, v, out;                               ///< (N, H, D), (S, Hkv, D) twice, (N, H, D)
  KvPages pages;                                       ///< instead of k and v
  FreshRows fresh;       ///< with pages, decode alone: rows to be put there, k_length counts them
  float* lse = nullptr;  ///< (H, N), or null
  std::int64_t lse_head = 0, lse_row = 0;
  const std::int32_t* cu_q = nullptr;                        ///< (B+1)
  const std::int32_t* cu_k = nullptr;                        ///< (B+1), when packed
  const std::int32_t* k_length = nullptr;                    ///< (B), when paged
  std::int32_t batch = 0, heads = 0, kv_heads = 0, dim = 0;  ///< B, H, Hkv, D
  std::int32_t k_rows = 0, q_rows = 0;                       ///< S (when packed), N
  float scale = 1.0f;
  DeviceMask mask;
  DeviceDropout dropout;
  const AttentionTile* tiles = nullptr;  ///< of forward_tile_rows() query rows each; not read by decode
  std::int32_t tile_count = 0;
};

/// New rows of keys and values for the pages of their sequences.
struct AppendArgs {
  DType dtype = DType::bf16;
  FreshRows fresh;
  KvPages pages;
  std::int32_t batch = 0, rows = 0, kv_heads = 0, dim = 0;  ///< B, N, Hkv, D
};

struct BackwardArgs {
  ForwardArgs forward;  ///< as given to forward, with out and lse as it left them; packed; tiles unused
  DType grad_dtype = DType::bf16;  ///< of dq, dk, dv: f32 or the dtype of q
  HeadRows dout, dq, dk, dv;       ///< dout in the dtype of q
  float* dbias = nullptr;     ///< strides of mask; every (b, h, i, j) its own element; zeroed by the caller
  void* workspace = nullptr;  ///< backward_workspace_bytes(), at a multiple of 256
  const AttentionTile* query_tiles = nullptr;  ///< of backward_tile_rows() queries of a head
  const AttentionTile* key_tiles = nullptr;    ///< of as many keys of a key/value head
  std::int32_t query_tile_count = 0, key_tile_count = 0;
};

/// What the math backend writes and reads beside ForwardArgs (packed); any of f32, bf16 and f16 each.
struct MathGradients {
  HeadRows dout, dq, dk, dv;
  DType dout_dtype = DType::f32, dq_dtype = DType::f32, dk_dtype = DType::f32, dv_dtype = DType::f32;
  float* dbias = nullptr;        ///< contiguous, or null
  std::int64_t bias_shape[4]{};  ///< 1: broadcast
};

inline constexpr int kMathBlocks = 264;  ///< of the math backend, each at one row at a time
/// Memory of the math backend.
struct MathWorkspace {
  double* rows = nullptr;                   ///< (kMathBlocks, 2, longest)
  double *lse = nullptr, *delta = nullptr;  ///< (N, H) each; backward alone
  std::int64_t longest = 0;                 ///< of Tk, and backward of Tq

  constexpr double* row(std::int64_t block, std::int64_t which) const noexcept {
    return rows + (block * 2 + which) * longest;
  }
  static constexpr std::size_t bytes(std::int64_t longest, std::int64_t rows_of_heads) noexcept {
    return sizeof(double) * static_cast<std::size_t>(kMathBlocks * 2 * longest + 2 * rows_of_heads);
  }
  /// Laid out in bytes(longest, rows_of_heads) of memory.
  constexpr MathWorkspace(double* memory, std::int64_t most, std::int64_t rows_of_heads) noexcept
      : rows(memory), lse(memory + kMathBlocks * 2 * most), delta(lse + rows_of_heads), longest(most) {}
};

}  // namespace inkling::cuda
