// Host tensors on a GPU, in a chosen layout, and back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "engine/exec_context.h"
#include "engine/tensor.h"
#include "tests/gpu.h"

namespace inkling::test {

inline ExecContext make_gpu_context() {
  return ExecContext({.device = Device::cuda, .threads = 1});
}

/// How (rows, heads, D) lies in memory: each has its own kernels or its own way into them.
enum class Layout : std::uint8_t {
  packed,      ///< rows back to back
  gapped,      ///< rows apart, as in the output of a QKV projection, every head aligned
  odd,         ///< nothing aligned to more than an element
  head_first,  ///< (H, N, D)
};
inline constexpr Layout kLayouts[] = {Layout::packed, Layout::gapped, Layout::odd, Layout::head_first};
constexpr std::string_view layout_name(Layout layout) noexcept {
  constexpr std::string_view kNames[] = {"packed", "gapped", "odd", "head first"};
  return kNames[static_cast<std::size_t>(layout)];
}

/// A contiguous host tensor's copy on the GPU. What lies between its rows is NaN.
class GpuCopy {
 public:
  GpuCopy() = default;
  GpuCopy(ExecContext& gpu, const TensorView& host, Layout layout = Layout::packed)
      : gpu_(&gpu), host_(host), view_(host) {
    if (host.data == nullptr) return;
    std::int64_t elements = host.numel();
    if (host.rank == 3 && layout != Layout::packed) {
      const std::int64_t rows = host.shape[0], heads = host.shape[1], dim = host.shape[2];
      begin_ = layout == Layout::odd ? 1 : 0;
      view_.stride[0] = heads * dim + (layout == Layout::odd ? 3 : 64);
      elements = rows * view_.stride[0];
      if (layout == Layout::head_first) {
        view_.stride = {dim, rows * dim, 1, 0};
        elements = host.numel();
      }
    }
    size_ = dtype_size(host.dtype);
    bytes_.resize(static_cast<std::size_t>(begin_ + elements) * size_);
    memory_ = gpu.backend().allocate(std::max<std::size_t>(bytes_.size(), 64));
    view_.data = memory_.data() + static_cast<std::size_t>(begin_) * size_;
    send();
  }
  TensorView view() const { return view_; }
  /// The host's values to the GPU, and back.
  void send() {
    if (bytes_.empty()) return;
    std::ranges::fill(bytes_, std::byte{0xff});
    each_run([](std::byte* there, std::byte* here, std::size_t n) { std::memcpy(there, here, n); });
    gpu_->backend().copy_in(memory_.data(), bytes_.data(), bytes_.size());
  }
  void fetch() {
    if (bytes_.empty()) return;
    gpu_->backend().copy_out(bytes_.data(), memory_.data(), bytes_.size());
    each_run([](std::byte* there, std::byte* here, std::size_t n) { std::memcpy(here, there, n); });
  }

 private:
  /// Calls body(copy, original, bytes) for every run that is contiguous on both sides.
  template <class Body>
  void each_run(Body&& body) {
    if (host_.numel() == 0) return;
    auto* here = static_cast<std::byte*>(host_.data);
    if (host_.rank != 3) return body(bytes_.data(), here, host_.nbytes());
    const std::size_t run = static_cast<std::size_t>(host_.shape[2]) * size_;
    for (std::int64_t row = 0; row < host_.shape[0]; ++row) {
      for (std::int64_t head = 0; head < host_.shape[1]; ++head, here += run) {
        const std::int64_t at = begin_ + row * view_.stride[0] + head * view_.stride[1];
        body(bytes_.data() + static_cast<std::size_t>(at) * size_, here, run);
      }
    }
  }

  ExecContext* gpu_ = nullptr;
  TensorView host_, view_;
  std::int64_t begin_ = 0;
  std::size_t size_ = 0;
  std::vector<std::byte> bytes_;
  Buffer memory_;
};

}  // namespace inkling::test
