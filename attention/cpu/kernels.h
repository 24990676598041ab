// AttentionKernels: one table of function pointers per instruction set; everything above is plain C++.
//
// Keys and values arrive as blocks of 64 tokens (kv_cache.h: K [D][64], V [64][Dp]), from the pages of a
// cache or from a workspace packed for one call; forward tasks of few rows also take packed rows as they are.
// A task is one block of query rows of one (sequence, key/value head); its row r is query r / group with head
// r % group of the group that shares the key/value head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/cpu/isa.h"
#include "engine/dtype.h"

namespace inkling::cpu {

inline constexpr std::int64_t kKeyBlock = 64;  // keys of one step of the online softmax
inline constexpr std::int64_t kKeySplit =
    512;  // keys of one partial result; part of the definition of the bits
inline constexpr std::int64_t kQueryRows = 48;  // most rows of a task: eight tiles of six
inline constexpr std::int64_t kMaxHeadDim = 256;

/// Where the blocks of one (sequence, key/value head) lie: pages[i] + offset, or without pages base + i ·
/// stride.
struct KvBlocks {
  std::byte* const* pages = nullptr;
  std::size_t offset = 0;
  std::byte* base = nullptr;
  std::size_t stride = 0;
  DType dtype = DType::f32;
  std::int64_t head_dim = 0;  // D

  std::int64_t padded_dim() const noexcept { return (head_dim + 15) / 16 * 16; }
  std::byte* k(std::int64_t block) const noexcept {
    return pages != nullptr ? pages[block] + offset : base + static_cast<std::size_t>(block) * stride;
  }
  std::byte* v(std::int64_t block) const noexcept {
    return k(block) + static_cast<std::size_t>(head_dim * kKeyBlock) * dtype_size(dtype);
  }
};

/// Rows of one head in a strided tensor: row i at data + i · stride elements.
struct HeadRows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::ptrdiff_t stride = 0;
};

/// Writes `count` keys and values as tokens position … of the blocks.
struct AppendTask {
  KvBlocks kv;
  HeadRows k, v;  // f32 into any dtype, or any dtype into f32
  std::int64_t position = 0, count = 0;
};

/// What a mask does to single scores, beyond the range of keys that a query sees. Pointers are the sequence's
/// own.
struct ScoreMask {
  const std::int32_t* document_q = nullptr;  // (Tq)
  const std::int32_t* document_k = nullptr;  // (Tk)
  const float* bias = nullptr;               // added; strides below
  const std::uint8_t* visible = nullptr;     // zero hides; strides below
  std::ptrdiff_t head = 0, row = 0, key = 0;

  bool any() const noexcept { return document_q != nullptr || bias != nullptr || visible != nullptr; }
};

/// sdpa.h: Dropout. threshold 0: none.
struct DropoutRule {
  std::uint64_t seed = 0;
  std::uint32_t offset = 0, threshold = 0;
  std::uint32_t head = 0;  // b · H + the first query head of the task
  float scale = 1.0f;      // 1 / (1 − p)
};

/// Rows of all heads in a strided tensor.
struct HeadMatrix {
  void* data = nullptr;  // first row of the sequence, first head of the task
  DType dtype = DType::f32;
  std::ptrdiff_t row = 0, head = 0;
};

/// A decode step gives `heads` consecutive key/value heads to one task: their blocks follow each other in a
/// page, or in a packed row, and memory is read fastest in long runs. They take turns block by block.
struct ForwardTask {
  KvBlocks kv;                    // of the first head
  HeadMatrix packed_k, packed_v;  // or null; then read instead of the memory of kv, in its dtype
  std::int64_t heads = 1;         // heads · (row_end − row_begin) ≤ kQueryRows
  std::size_t head_stride = 0;    // bytes between the blocks of consecutive heads
  const void* q = nullptr;        // first query of the sequence, first query head
  DType q_dtype = DType::f32;
  std::ptrdiff_t q_row = 0, q_head = 0;  // strides in elements, per query and per query head
  std::int64_t group = 1;                // query heads of this key/value head
  std::int64_t row_begin = 0, row_end = 0;
  float scale = 1.0f;
  // Query i sees keys max(0, i + see_from) … min(keys, i + see_until) − 1.
  std::int64_t keys = 0, see_from = 0, see_until = 0;
  void* out = nullptr;
  DType out_dtype = DType::f32;
  std::ptrdiff_t out_row = 0, out_head = 0;
  float* lse = nullptr;  // or null
  std::ptrdiff_t lse_row = 0, lse_head = 0;
  ScoreMask mask;
  DropoutRule dropout;
  // Split-KV: forward_split() computes split `split` alone and leaves partial_floats() at partials + split ·
  // that; forward_combine() folds splits 0 … split − 1 in order and writes out and lse.
  float* partials = nullptr;
  std::int64_t split = 0;

  bool packed() const noexcept { return packed_k.data != nullptr; }
  std::int64_t partial_floats() const noexcept {
    return heads * (row_end - row_begin) * (kv.padded_dim() + 16);
  }
};

/// All queries, keys and values of one (sequence, key/value head).
struct BackwardTask {
  ForwardTask forward;  // with heads = 1, rows 0 … row_end; out and lse as the forward pass left them
  KvBlocks swapped;  // the blocks of forward.kv, which are f32, with k and v exchanged: V [D][64], K [64][Dp]
  HeadMatrix dout, dq;      // query heads
  HeadMatrix dk, dv;        // the key/value head
  float* dk_sum = nullptr;  // (keys rounded up to 64, Dp) workspace
  float* dv_sum = nullptr;  // the same
  float* dbias = nullptr;   // added to; strides of forward.mask
};

struct AttentionKernels {
  void (*append)(const AppendTask& task);
  void (*forward)(const ForwardTask& task, std::byte* scratch);
  void (*forward_split)(const ForwardTask& task, std::byte* scratch);
  void (*forward_combine)(const ForwardTask& task, std::byte* scratch);
  void (*backward)(const BackwardTask& task, std::byte* scratch);
};

/// The table of `isa`, which must be supported here.
const AttentionKernels& attention_kernels(Isa isa);

const AttentionKernels& attention_kernels_portable();
const AttentionKernels& attention_kernels_avx2();
const AttentionKernels& attention_kernels_avx512();

/// Scratch of one forward task: Q, scores, two accumulators, widened K and V, the state of every row.
constexpr std::size_t forward_scratch_bytes(std::int64_t head_dim) noexcept {
  const std::int64_t padded = (head_dim + 15) / 16 * 16;
  const std::int64_t floats =
      kQueryRows * (head_dim + kKeyBlock + 2 * padded + 16 + 4) + kKeyBlock * (head_dim + padded) + 8 * 16;
  return static_cast<std::size_t>(floats) * sizeof(float) + kQueryRows * 4 * sizeof(std::int64_t) + 64;
}

/// Scratch of one backward task: that of forward, and eight blocks more.
constexpr std::size_t backward_scratch_bytes(std::int64_t head_dim) noexcept {
  const std::int64_t padded = (head_dim + 15) / 16 * 16;
  return forward_scratch_bytes(head_dim) +
         static_cast<std::size_t>(kQueryRows * (3 * padded + 3 * kKeyBlock + 2)) * sizeof(float) + 64;
}

}  // namespace inkling::cpu
