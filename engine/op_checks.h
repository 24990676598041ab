// What ops.cpp and training_ops.cpp check alike. Every check that passes builds no string.
#pragma once

#include <span>
#include <string>

#include "engine/tensor.h"

namespace inkling::op {

/// "op: argument: expected …, got …". `got` is a callable.
template <class Got>
void check(bool ok, const char* what, Got&& got) {
  require(ok, Code::usage, [&] { return std::string(what) + ", got " + std::string(got()); });
}

/// `other`: a dtype that is as good as f32.
inline void check_rows(const TensorView& x, const char* what, DType other = DType::f32) {
  const bool type = x.dtype == DType::f32 || x.dtype == other;
  require(x.rank == 2 && type && (x.shape[1] <= 1 || x.stride[1] == 1), Code::usage, [&] {
    return std::string(what) + ": expected f32 rows of rank 2, got " + std::string(dtype_name(x.dtype)) +
           " " + x.shape_string();
  });
}

inline void check_shape(const TensorView& x, std::int64_t rows, std::int64_t columns, const char* what,
                        DType other = DType::f32) {
  check_rows(x, what, other);
  require(x.shape[0] == rows && x.shape[1] == columns, Code::usage, [&] {
    return std::string(what) + ": expected [" + std::to_string(rows) + ", " + std::to_string(columns) +
           "], got " + x.shape_string();
  });
}

inline void check_indices(std::span<const std::int32_t> indices, std::int64_t limit, const char* what) {
  for (const std::int32_t i : indices) {
    require(i >= 0 && i < limit, Code::usage, [&] {
      return std::string(what) + ": expected indices below " + std::to_string(limit) + ", got " +
             std::to_string(i);
    });
  }
}

/// "op: argument: expected `expected` elements, got `got`".
inline void check_size(std::size_t got, std::size_t expected, const char* what) {
  require(got == expected, Code::usage, [&] {
    return std::string(what) + ": expected " + std::to_string(expected) + " elements, got " +
           std::to_string(got);
  });
}

}  // namespace inkling::op
