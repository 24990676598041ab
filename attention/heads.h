// Heads of packed rows, as views: nothing is copied.
#pragma once

#include "engine/tensor.h"

namespace inkling {

/// Columns [begin, begin + heads · dim) of f32 rows (N, ·) as (N, H, D).
inline TensorView heads_of(const TensorView& rows, std::int64_t begin, std::int64_t heads, std::int64_t dim) {
  TensorView view(static_cast<float*>(rows.data) + begin, DType::f32, {rows.shape[0], heads, dim});
  view.stride = {rows.stride[0], dim, 1, 0};
  return view;
}

}  // namespace inkling
