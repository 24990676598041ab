// What a context keeps for attention on its GPU from call to call, so that a repeated call asks the driver
// for nothing, uploads nothing and waits for nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "attention/cuda/launch.h"
#include "engine/cuda/check.h"
#include "engine/cuda/cuda_backend.h"
#include "engine/exec_context.h"

namespace inkling::cuda {

/// Lists that kernels read, back to back as they lie on the device: first those that tell one call from
/// another, then what is made from them.
class Lists {
 public:
  void clear() noexcept {
    bytes_.clear();
    described_ = 0;
  }
  /// Returns the byte at which the values begin.
  template <class T>
  std::size_t add(std::span<const T> values) {
    const std::size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + values.size_bytes());
    std::ranges::copy(std::as_bytes(values), bytes_.begin() + static_cast<std::ptrdiff_t>(at));
    return at;
  }
  /// What was added so far is the description of a call.
  void end_description() noexcept { described_ = bytes_.size(); }
  bool same_call(const Lists& other) const noexcept {
    return std::ranges::equal(std::span(bytes_).first(described_),
                              std::span(other.bytes_).first(other.described_));
  }
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  std::size_t described_ = 0;
  std::vector<std::byte> bytes_;
};

/// Lists and their copy on the device. L: a Lists.
template <class L>
struct KeptLists {
  L lists, next;  ///< those on the device; those of the call at hand, once described
  Buffer memory;

  /// Completes `next` by finish(next) and uploads it, unless `lists` are of the same call. Returns whether it
  /// did.
  template <class Finish>
  bool bring(CudaBackend& backend, Finish&& finish) {
    if (next.same_call(lists)) return false;
    finish(next);
    lists.clear();  // an upload that fails leaves none
    backend.grown(memory, next.bytes().size());
    backend.copy_in(memory.data(), next.bytes().data(), next.bytes().size());
    std::swap(lists, next);
    return true;
  }
  template <class T>
  const T* at(std::size_t offset) const noexcept {
    return reinterpret_cast<const T*>(memory.data() + offset);
  }
};

/// Facts of the device, and memory that kernels want beside their arguments.
class GpuWorkspace {
 public:
  static GpuWorkspace& of(ExecContext& context) { return context.attached<GpuWorkspace>(); }

  const DeviceTraits& traits(const CudaBackend& backend) {
    if (!known_) check(read_traits(backend.ordinal(), traits_), "device attributes");
    known_ = true;
    return traits_;
  }
  /// decode() with a workspace that grows.
  void run_decode(CudaBackend& backend, const ForwardArgs& args, const DecodeShape& shape) {
    const std::size_t counters =
        sizeof(unsigned int) * static_cast<std::size_t>(args.batch) * static_cast<std::size_t>(args.kv_heads);
    if (counters_.size() < counters) {
      backend.grown(counters_, counters);
      check(cudaMemsetAsync(counters_.data(), 0, counters_.size(), backend.stream()), "counters");
    }
    const DecodeWorkspace workspace{scratch(backend, decode_workspace_bytes(args, shape)),
                                    reinterpret_cast<unsigned int*>(counters_.data())};
    check(decode(args, shape, workspace, traits(backend), backend.stream()), "decode attention");
  }
  /// Memory for the kernels of one call.
  std::byte* scratch(CudaBackend& backend, std::size_t bytes) { return backend.grown(scratch_, bytes); }

 private:
  DeviceTraits traits_;
  bool known_ = false;
  Buffer scratch_, counters_;  // counters: zero but while decode runs
};

inline HeadRows rows_of(const TensorView& view) noexcept {
  return {view.data, view.stride[0], view.stride[1]};
}

}  // namespace inkling::cuda
