#include "attention/kv_cache.h"

#include <algorithm>
#include <string>
#include <utility>

namespace inkling {
namespace {

// Small pages are made several at a time: about one huge page of memory.
constexpr std::size_t kChunkBytes = std::size_t{2} << 20;

std::string megabytes(std::size_t bytes) {
  const std::size_t tenths = (bytes * 10 + (std::size_t{1} << 19)) >> 20;
  return std::to_string(tenths / 10) + '.' + std::to_string(tenths % 10) + " MiB";
}

}  // namespace

KvPool::KvPool(const KvShape& shape, std::size_t max_bytes, Memory* memory)
    : memory_(memory == nullptr ? &host_ : memory), shape_(shape), max_bytes_(max_bytes) {
  require(shape.layers > 0 && shape.heads > 0, Code::usage, [&] {
    return "kv cache: shape: expected at least one layer and head, got " + std::to_string(shape.layers) +
           " and " + std::to_string(shape.heads);
  });
  require(shape.head_dim > 0 && shape.head_dim <= 256, Code::usage,
          [&] { return "kv cache: head_dim: expected 1 to 256, got " + std::to_string(shape.head_dim); });
  require(shape.dtype == DType::f32 || shape.dtype == DType::bf16 || shape.dtype == DType::f16, Code::usage,
          [&] {
            return "kv cache: dtype: expected f32, bf16 or f16, got " + std::string(dtype_name(shape.dtype));
          });
  page_stride_ = (shape.page_bytes() + 63) / 64 * 64;
}

void KvPool::scribble_free_pages(std::byte byte) {
  const std::vector<std::byte> bytes(shape_.page_bytes(), byte);
  for (const std::int32_t page : free_) {
    memory_->copy_in(pages_[static_cast<std::size_t>(page)].data, bytes.data(), bytes.size());
  }
}

void KvPool::refuse(std::size_t bytes) const {
  throw Error(Code::out_of_memory,
              "kv cache: " + megabytes(bytes) + " more were needed for " + std::to_string(kKvPageTokens) +
                  "-token pages; in use " + megabytes(used_bytes()) + ", limit " +
                  (max_bytes_ == 0 ? std::string("that of the system") : megabytes(max_bytes_)));
}

void KvPool::grow() {
  std::size_t pages = std::max<std::size_t>(1, kChunkBytes / page_stride_);
  if (max_bytes_ != 0) {
    pages = std::min(pages, (max_bytes_ - std::min(max_bytes_, allocated_)) / page_stride_);
    if (pages == 0) refuse(page_stride_);
  }
  chunks_.reserve(chunks_.size() + 1);
  pages_.reserve(pages_.size() + pages);
  free_.reserve(pages_.size() + pages);
  Buffer chunk = memory_->allocate(pages * page_stride_);
  const std::size_t first = pages_.size();
  for (std::size_t i = 0; i < pages; ++i) pages_.push_back({chunk.data() + i * page_stride_, 0});
  for (std::size_t i = pages; i-- > 0;) free_.push_back(static_cast<std::int32_t>(first + i));
  allocated_ += chunk.size();
  chunks_.push_back(std::move(chunk));
}

std::int32_t KvPool::take() {
  if (free_.empty()) grow();
  const std::int32_t page = free_.back();
  free_.pop_back();
  pages_[static_cast<std::size_t>(page)].references = 1;
  ++used_pages_;
  return page;
}

void KvPool::drop(std::int32_t page) noexcept {
  if (--pages_[static_cast<std::size_t>(page)].references > 0) return;
  free_.push_back(page);  // grow() has made the room
  --used_pages_;
}

KvSequence::KvSequence(KvPool& pool) : pool_(&pool) {}

KvSequence::KvSequence(KvSequence&& other) noexcept
    : pool_(other.pool_),
      pages_(std::move(other.pages_)),
      numbers_(std::move(other.numbers_)),
      length_(std::exchange(other.length_, 0)),
      writable_(std::exchange(other.writable_, 0)) {
  other.pages_.clear();
  other.numbers_.clear();
}

KvSequence& KvSequence::operator=(KvSequence&& other) noexcept {
  if (this == &other) return *this;
  release(0);
  pool_ = other.pool_;
  pages_.swap(other.pages_);
  numbers_.swap(other.numbers_);
  length_ = std::exchange(other.length_, 0);
  writable_ = std::exchange(other.writable_, 0);
  return *this;
}

void KvSequence::release(std::size_t keep) noexcept {
  while (pages_.size() > keep) {
    pool_->drop(numbers_.back());
    numbers_.pop_back();
    pages_.pop_back();
  }
}

void KvSequence::reserve(std::int64_t n) {
  require(n >= 0 && n <= INT32_MAX - length_, Code::usage, [&] {
    return "kv cache: reserve: expected 0 to " + std::to_string(INT32_MAX - length_) + " tokens, got " +
           std::to_string(n);
  });
  const auto held = static_cast<std::size_t>((length_ + kKvPageTokens - 1) / kKvPageTokens);
  const auto needed = static_cast<std::size_t>((length_ + n + kKvPageTokens - 1) / kKvPageTokens);
  // Room for 64 pages at once, so that the list itself rarely grows in a decode loop.
  // Both lists, though one may have failed to grow before: a page that is taken has a place in each.
  const auto make_room = [needed](auto& list) {
    if (list.capacity() < needed) list.reserve(std::max<std::size_t>({64, needed, list.capacity() * 2}));
  };
  make_room(pages_);
  make_room(numbers_);

  const auto page = [&](std::int32_t number) -> KvPool::Page& {
    return pool_->pages_[static_cast<std::size_t>(number)];
  };
  const bool partial = length_ % kKvPageTokens != 0;
  const bool unshare = n > 0 && partial && page(numbers_[held - 1]).references > 1;
  const std::size_t before = pages_.size();
  std::int32_t copy = -1;
  try {
    while (pages_.size() < needed) {
      numbers_.push_back(pool_->take());
      pages_.push_back(page(numbers_.back()).data);
    }
    if (unshare) {
      copy = pool_->take();
      pool_->memory_->copy(page(copy).data, pages_[held - 1], pool_->shape().page_bytes());
    }
  } catch (...) {
    if (copy >= 0) pool_->drop(copy);
    release(before);
    throw;
  }
  if (unshare) {
    pool_->drop(std::exchange(numbers_[held - 1], copy));
    pages_[held - 1] = page(copy).data;
  }
  writable_ = std::max(writable_, length_ + n);
}

void KvSequence::advance(std::int64_t n) {
  require(n >= 0 && n <= room(), Code::usage, [&] {
    return "kv cache: advance: expected 0 to " + std::to_string(room()) + " tokens, got " + std::to_string(n);
  });
  length_ += n;
}

void KvSequence::truncate(std::int64_t n) {
  require(n >= 0 && n <= length_, Code::usage, [&] {
    return "kv cache: truncate: expected 0 to " + std::to_string(length_) + ", got " + std::to_string(n);
  });
  length_ = writable_ = n;
  release(static_cast<std::size_t>((n + kKvPageTokens - 1) / kKvPageTokens));
}

KvSequence KvSequence::fork() {
  KvSequence other(*pool_);
  truncate(length_);
  const std::size_t room = std::max<std::size_t>(64, pages_.size());
  other.pages_.reserve(room);
  other.numbers_.reserve(room);
  other.pages_ = pages_;
  other.numbers_ = numbers_;
  for (const std::int32_t page : numbers_) ++pool_->pages_[static_cast<std::size_t>(page)].references;
  other.length_ = other.writable_ = length_;
  return other;
}

}  // namespace inkling
