// The paged key/value cache: KvPool owns pages of 64 tokens, KvSequence is one sequence's list of pages.
//
// A page holds 64 tokens of all layers. Within it each (layer, head) owns one contiguous run, K and then V:
//
//   on the CPU  K [D][64]: 64 tokens side by side, the column panel of a weight, so that Q·Kᵀ needs no
//               horizontal sums
//               V [64][Dp], Dp = D rounded up to 16; columns D … Dp−1 of a written token are zero
//   on a GPU    K and V [64][D], V where it would be on the CPU
//
// Memory of tokens that were never written is garbage, and nothing reads it.
//
// Sequences share pages by reference count: fork() copies nothing, and the first to write into a shared page
// gets its own copy in reserve(). Not thread-safe: one thread at a time per pool and its sequences (the ops
// read and write the pages of *reserved* tokens from many threads, that is all).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/dtype.h"
#include "engine/memory.h"

namespace inkling {

inline constexpr std::int64_t kKvPageTokens = 64;

struct KvShape {
  int layers = 0;
  int heads = 0;             ///< key/value heads, Hkv
  int head_dim = 0;          ///< D, 1 … 256
  DType dtype = DType::f32;  ///< f32, bf16 or f16

  std::int64_t padded_dim() const noexcept { return (head_dim + 15) / 16 * 16; }  ///< Dp
  /// Bytes of K of one (layer, head) in a page; V follows at once.
  std::size_t k_bytes() const noexcept {
    return static_cast<std::size_t>(head_dim) * kKvPageTokens * dtype_size(dtype);
  }
  std::size_t head_bytes() const noexcept {
    return k_bytes() + static_cast<std::size_t>(padded_dim()) * kKvPageTokens * dtype_size(dtype);
  }
  std::size_t page_bytes() const noexcept {
    return head_bytes() * static_cast<std::size_t>(layers) * static_cast<std::size_t>(heads);
  }
  /// Where (layer, head) starts in a page: K here, V k_bytes() further.
  std::size_t offset(int layer, std::int64_t head) const noexcept {
    return head_bytes() * (static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads) +
                           static_cast<std::size_t>(head));
  }
};

/// Owns the pages. Must outlive its sequences. Not movable: sequences point at it.
class KvPool {
 public:
  /// No limit when max_bytes is 0. Pages lie in `memory`, which outlives the pool; null: that of the CPU.
  /// Allocates nothing yet. Throws Error{usage} for a shape out of range.
  explicit KvPool(const KvShape& shape, std::size_t max_bytes = 0, Memory* memory = nullptr);
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvShape& shape() const noexcept { return shape_; }
  Device device() const noexcept { return memory_->device(); }   ///< whose memory the pages lie in
  std::size_t max_bytes() const noexcept { return max_bytes_; }  ///< 0: no limit
  std::size_t used_bytes() const noexcept { return used_pages_ * page_stride_; }
  std::size_t used_pages() const noexcept { return used_pages_; }
  /// Bytes that `tokens` tokens of one sequence take.
  std::size_t bytes_for(std::int64_t tokens) const noexcept {
    return static_cast<std::size_t>((tokens + kKvPageTokens - 1) / kKvPageTokens) * page_stride_;
  }
  /// Writes `byte` over every page that no sequence holds. For tests of "nothing reads garbage".
  void scribble_free_pages(std::byte byte);

 private:
  friend class KvSequence;
  struct Page {
    std::byte* data = nullptr;
    std::int64_t references = 0;
  };

  std::int32_t take();  // one page with one reference, or throws Error{out_of_memory}
  void drop(std::int32_t page) noexcept;
  void grow();
  [[noreturn]] void refuse(std::size_t bytes) const;

  Memory host_;
  Memory* memory_;  // host_, or a device's
  KvShape shape_;
  std::size_t max_bytes_ = 0, page_stride_ = 0, allocated_ = 0, used_pages_ = 0;
  std::vector<Page> pages_;         // all there are, by number
  std::vector<std::int32_t> free_;  // those that no sequence holds; room for all
  std::vector<Buffer> chunks_;
};

/// One sequence's tokens in a pool. Move-only; the destructor returns the pages.
class KvSequence {
 public:
  explicit KvSequence(KvPool& pool);
  ~KvSequence() { release(0); }
  KvSequence(KvSequence&& other) noexcept;
  KvSequence& operator=(KvSequence&& other) noexcept;
  KvSequence(const KvSequence&) = delete;
  KvSequence& operator=(const KvSequence&) = delete;

  /// Tokens held: the next one has this position.
  std::int64_t length() const noexcept { return length_; }
  /// Tokens that may be written now without another reserve(): room beyond length().
  std::int64_t room() const noexcept { return writable_ - length_; }
  const KvPool& pool() const noexcept { return *pool_; }

  /// Makes room for n more tokens, of at most 2³¹ − 1 in all; unshares the page they start in. Throws
  /// Error{out_of_memory} with the figures and then changes nothing. Allocates nothing when freed pages are
  /// at hand.
  void reserve(std::int64_t n);
  /// n tokens of the reserved room have been written. Throws Error{usage} when n > room().
  void advance(std::int64_t n);
  /// Forgets all but the first n tokens; room() becomes 0. Throws Error{usage} unless 0 ≤ n ≤ length().
  void truncate(std::int64_t n);
  /// A second sequence with the same tokens, sharing every page; room() of both becomes 0. Copies happen in
  /// reserve(), one page at most. Θ(pages).
  KvSequence fork();

  /// Page i holds tokens 64i … 64i+63; layout in the head of this file, offsets by KvShape.
  std::span<std::byte* const> pages() const noexcept { return pages_; }

 private:
  void release(std::size_t keep) noexcept;

  KvPool* pool_ = nullptr;
  std::vector<std::byte*> pages_;
  std::vector<std::int32_t> numbers_;  // of the same pages in the pool
  std::int64_t length_ = 0;
  std::int64_t writable_ = 0;  // positions below this may be written by this sequence
};

}  // namespace inkling
