// Arena: the activations of one step, laid out from a table of sizes and kept from step to step.
//
//   ArenaPlan plan;
//   const auto x = plan.add("x", N, C);
//   arena.use(plan, memory);        // grows when the plan needs more than any before it
//   TensorView v = arena.view(x);   // (N,C), content undefined
//
// Matrices with rows 64-byte aligned, in the memory of one device. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/memory.h"

namespace inkling {

class ArenaPlan {
 public:
  struct Entry {
    std::string_view name;  ///< a literal
    TensorView layout;      ///< data is null
    std::size_t offset = 0, bytes = 0;
  };

  /// Forgets all entries and keeps the memory of the table.
  void clear() noexcept { entries_.clear(), next_ = bytes_ = 0; }
  /// Entries added from now on lie where `from` and the entries after it lie: a step that writes them has
  /// read those for the last time.
  void reuse(std::size_t from) noexcept { next_ = entries_[from].offset; }
  /// A matrix whose rows are an odd number of cache lines apart: rows a multiple of 4 KiB apart would all
  /// fall into the same few sets of the L1 cache. Returns its number.
  std::size_t add(std::string_view name, std::int64_t rows, std::int64_t columns, DType dtype = DType::f32) {
    const auto line = static_cast<std::int64_t>(64 / dtype_size(dtype));  // elements
    std::int64_t stride = (columns + line - 1) / line * line;
    if (stride / line % 2 == 0) stride += line;
    Entry entry{name, TensorView(nullptr, dtype, {rows, columns}), next_, 0};
    entry.layout.stride[0] = stride;
    entry.bytes = (static_cast<std::size_t>(rows * stride) * dtype_size(dtype) + 63) / 64 * 64;
    next_ += entry.bytes;
    bytes_ = std::max(bytes_, next_);
    entries_.push_back(entry);
    return entries_.size() - 1;
  }
  const std::vector<Entry>& entries() const noexcept { return entries_; }
  std::size_t nbytes() const noexcept { return bytes_; }

 private:
  std::vector<Entry> entries_;
  std::size_t next_ = 0, bytes_ = 0;  // where the next entry goes, and the end of the furthest one
};

class Arena {
 public:
  /// Lays `plan` out. Throws Error{out_of_memory}.
  void use(const ArenaPlan& plan, Memory& memory) {
    if (plan.nbytes() > buffer_.size()) {
      buffer_ = Buffer();  // first give back, then take: never both at once
      buffer_ = memory.allocate(plan.nbytes());
    }
    plan_ = &plan;
  }
  /// Entry `index` of the plan in use, which must outlive the view's making.
  TensorView view(std::size_t index) const noexcept {
    const ArenaPlan::Entry& entry = plan_->entries()[index];
    TensorView v = entry.layout;
    v.data = buffer_.data() + entry.offset;
    return v;
  }
  std::size_t nbytes() const noexcept { return buffer_.size(); }

 private:
  Buffer buffer_;
  const ArenaPlan* plan_ = nullptr;
};

}  // namespace inkling
