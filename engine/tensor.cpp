#include "engine/tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <new>

namespace inkling {
namespace {

constexpr std::align_val_t kAlign{64};
constexpr std::size_t kHugePage = std::size_t{2} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

}  // namespace

TensorView::TensorView(void* memory, DType type, std::span<const std::int64_t> extents)
    : data(memory), dtype(type), rank(static_cast<std::uint8_t>(extents.size())) {
  require(extents.size() <= kMaxRank, Code::usage,
          [&] { return "tensor: rank: expected at most 4, got " + std::to_string(extents.size()); });
  std::int64_t step = 1;
  for (std::size_t i = extents.size(); i-- > 0;) {
    require(extents[i] >= 0, Code::usage,
            [&] { return "tensor: shape: expected no negative extent, got " + std::to_string(extents[i]); });
    shape[i] = extents[i];
    stride[i] = step;
    // Extents of 0 count as 1: strides are products too.
    require(!__builtin_mul_overflow(step, std::max<std::int64_t>(extents[i], 1), &step), Code::usage,
            [] { return std::string("tensor: shape: expected fewer than 2^63 elements, got more"); });
  }
}

std::int64_t TensorView::numel() const noexcept {
  std::int64_t n = 1;
  for (std::size_t i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool TensorView::contiguous() const noexcept {
  std::int64_t step = 1;
  for (std::size_t i = rank; i-- > 0; step *= shape[i]) {
    if (shape[i] != 1 && stride[i] != step) return numel() == 0;  // nothing lies side by side in any order
  }
  return true;
}

std::string TensorView::shape_string() const {
  std::string text = "[";
  for (std::size_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// Small blocks come from the heap. From 2 MiB up, memory is mapped at a 2 MiB boundary and huge pages are
// asked for: streaming weights through 4 KiB pages costs a TLB walk every 4 KiB. The end of a block that
// fills no huge page is in small ones: a KV page of GPT-2 124M in bf16 is 2.25 MiB and would take 4.
Buffer::Buffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const auto fail = [&] {
    throw Error(Code::out_of_memory, "buffer: cannot allocate " + std::to_string(bytes) + " bytes");
  };
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) fail();
  if (bytes < kHugePage) {
    data_ = static_cast<std::byte*>(::operator new(bytes, kAlign, std::nothrow));
    if (data_ == nullptr) fail();
    return;
  }
  const std::size_t want = round_up(bytes, kHugePage) + kHugePage;
  void* raw = ::mmap(nullptr, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) fail();
  auto* begin = static_cast<std::byte*>(raw);
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::size_t skip = round_up(address, kHugePage) - address;
  mapped_ = round_up(bytes, static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)));
  if (skip > 0) ::munmap(begin, skip);
  if (want - skip > mapped_) ::munmap(begin + skip + mapped_, want - skip - mapped_);
  data_ = begin + skip;
  ::madvise(data_, mapped_, MADV_HUGEPAGE);
}

void Buffer::release() noexcept {
  if (release_ != nullptr) {
    release_(owner_, data_);
  } else if (mapped_ != 0) {
    ::munmap(data_, mapped_);
  } else {
    ::operator delete(data_, kAlign);
  }
}

Tensor::Tensor(DType dtype, std::span<const std::int64_t> shape)
    : buffer_(checked_nbytes(shape, dtype)), view_(buffer_.data(), dtype, shape) {}

std::size_t checked_nbytes(std::span<const std::int64_t> shape, DType dtype) {
  std::size_t bytes = dtype_size(dtype);
  bool zero = false;
  for (const std::int64_t extent : shape) zero = zero || extent == 0;
  if (zero) return 0;
  for (const std::int64_t extent : shape) {
    require(extent > 0 && bytes <= (std::size_t{1} << 63) / static_cast<std::size_t>(extent), Code::malformed,
            [&] {
              return "tensor: shape: expected fewer than 2^63 bytes, got an extent of " +
                     std::to_string(extent);
            });
    bytes *= static_cast<std::size_t>(extent);
  }
  return bytes;
}

}  // namespace inkling
