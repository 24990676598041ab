// Tensors: TensorView looks, Buffer owns bytes, Tensor is a Buffer with a view of it.
//
// Row-major unless strides say otherwise; rank at most 4; strides in elements. Views are trivially copyable
// and passed by value; whoever made the memory keeps it alive. Nothing here is reference-counted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

#include "engine/base/error.h"
#include "engine/dtype.h"

namespace inkling {

inline constexpr std::size_t kMaxRank = 4;

/// A non-owning view of elements of one dtype.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::uint8_t rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> stride{};

  TensorView() = default;
  /// A contiguous view. Throws Error{usage} when the rank is above 4, an extent is negative, or the product
  /// of the others than 0 passes 2^63.
  TensorView(void* memory, DType type, std::span<const std::int64_t> extents);
  TensorView(void* memory, DType type, std::initializer_list<std::int64_t> extents)
      : TensorView(memory, type, std::span(extents.begin(), extents.size())) {}

  std::int64_t numel() const noexcept;
  std::size_t nbytes() const noexcept { return static_cast<std::size_t>(numel()) * dtype_size(dtype); }
  bool contiguous() const noexcept;
  std::string shape_string() const;  ///< "[2, 3]"

  /// Typed access; throws Error{usage} when T is not the dtype.
  template <class T>
  T* as() const {
    require(dtype_of<T> == dtype, Code::usage,
            [&] { return "tensor: dtype: got " + std::string(dtype_name(dtype)) + ", asked for another"; });
    return static_cast<T*>(data);
  }
};

/// Owns raw memory, aligned to 64 bytes (2 MiB and huge pages where it pays). Move-only.
/// Throws Error{out_of_memory}. Content is not initialised below the huge-page size and zero above it.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t bytes);
  /// Takes over memory that `give_back(owner, data)` frees: a device's (Backend::allocate). The owner
  /// outlives it.
  using GiveBack = void (*)(void* owner, std::byte* data) noexcept;
  Buffer(std::byte* data, std::size_t bytes, GiveBack give_back, void* owner = nullptr)
      : data_(data), size_(bytes), release_(give_back), owner_(owner) {}
  ~Buffer() { release(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept { return Buffer(std::move(other)).swap(*this), *this; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(release_, other.release_);
    std::swap(owner_, other.owner_);
  }
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t mapped_ = 0;      // bytes to unmap; 0 when the memory came from the heap
  GiveBack release_ = nullptr;  // of memory that came from elsewhere
  void* owner_ = nullptr;
};

/// A Buffer and its contiguous layout.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::initializer_list<std::int64_t> shape)
      : Tensor(dtype, std::span(shape.begin(), shape.size())) {}
  Tensor(DType dtype, std::span<const std::int64_t> shape);
  /// `buffer` holds at least that many bytes.
  Tensor(Buffer buffer, DType dtype, std::span<const std::int64_t> shape)
      : buffer_(std::move(buffer)), view_(buffer_.data(), dtype, shape) {}

  TensorView view() const noexcept { return view_; }
  template <class T>
  T* as() const {
    return view_.as<T>();
  }
  std::int64_t size(std::size_t axis) const noexcept { return view_.shape[axis]; }
  std::int64_t numel() const noexcept { return view_.numel(); }
  std::size_t nbytes() const noexcept { return buffer_.size(); }

 private:
  Buffer buffer_;
  TensorView view_;
};

/// product(shape) × size of dtype, or throws Error{malformed} when that passes 2^63.
std::size_t checked_nbytes(std::span<const std::int64_t> shape, DType dtype);

}  // namespace inkling
