// What the launchers share.
#pragma once

#include <cstdint>

#include "attention/cuda/launch.h"
#include "engine/cuda/launch.cuh"

namespace inkling::cuda {

/// Whether every row of every head starts at a multiple of 16 bytes and D fills whole 16-byte pieces.
inline bool is_wide(const HeadRows& rows, std::int32_t dim, std::size_t size) {
  const auto whole = [&](std::int64_t elements) {
    return elements * static_cast<std::int64_t>(size) % 16 == 0;
  };
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && whole(rows.row) && whole(rows.head) &&
         whole(dim);
}
inline bool is_wide(const ForwardArgs& a) {
  const std::size_t size = dtype_size(a.dtype);
  if (!is_wide(a.q, a.dim, size)) return false;
  if (a.pages.table == nullptr) return is_wide(a.k, a.dim, size) && is_wide(a.v, a.dim, size);
  return a.pages.k_offset % 16 == 0 && a.pages.v_offset % 16 == 0 &&
         is_wide({nullptr, a.pages.token, a.pages.head}, a.dim, size);
}

}  // namespace inkling::cuda
