// PlacedLists: lists of indices where the ops of a device read them.
#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "engine/memory.h"

namespace inkling {

/// On the CPU the caller's lists themselves; on another device copies, all in one. Not thread-safe.
class PlacedLists {
 public:
  using List = std::span<const std::int32_t>;

  /// Replaces each list by what ops are to be given: good until the next call, as the originals are. The copy
  /// also parts a pass from the one before it, whose weights a GPU's kernels may read early (cuda/chain.cuh).
  void place(Memory& memory, std::initializer_list<List*> lists) {
    if (memory.device() == Device::cpu) return;
    host_.clear();
    for (const List* list : lists) host_.insert(host_.end(), list->begin(), list->end());
    const std::size_t bytes = host_.size() * sizeof(std::int32_t);
    if (placed_.size() < bytes) placed_ = memory.allocate(std::bit_ceil(bytes));
    memory.copy_in(placed_.data(), host_.data(), bytes);
    const auto* at = reinterpret_cast<const std::int32_t*>(placed_.data());
    for (List* list : lists) {
      *list = {at, list->size()};
      at += list->size();
    }
  }

  /// The copy that a placed list is, to be written where the ops read it; null where it is the caller's own.
  std::int32_t* copy_of(const List& list) noexcept {
    auto* const first = reinterpret_cast<std::int32_t*>(placed_.data());
    return placed_.empty() ? nullptr : first + (list.data() - first);
  }

 private:
  std::vector<std::int32_t> host_;
  Buffer placed_;
};

}  // namespace inkling
