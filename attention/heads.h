// Heads of packed rows, as views: nothing is copied.
#pragma once

#include "engine/tensor.h"

namespace inkling {

/// Columns [begin, begin + heads · dim) of rows (N, ·) as (N, H, D).
inline TensorView heads_of(const TensorView& rows, std::int64_t begin, std::int64_t heads, std::int64_t dim) {
  auto* first =
      static_cast<std::byte*>(rows.data) + begin * static_cast<std::int64_t>(dtype_size(rows.dtype));
  TensorView view(first, rows.dtype, {rows.shape[0], heads, dim});
  view.stride = {rows.stride[0], dim, 1, 0};
  return view;
}

}  // namespace inkling
