// A row through a LayerNorm by one warp. The order of its sums is decided by the width alone, so that a row
// has the same bits from every kernel: a lane takes columns 4·(lane + 32·i) … + 3, each of the four a sum of
// its own over i, then those and then lanes are folded.
#pragma once

#include <type_traits>

#include "engine/cuda/element.cuh"
#include "engine/cuda/kernels.h"

namespace inkling::cuda {

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

/// Four neighbours of a row of `width`, a multiple of four, from column c on; beyond the row the last four
/// again: a branch around the load would wait for memory once per load.
template <class In>
__device__ inline void read_four(float (&v)[4], const In* row, int c, int width) {
  const In* const from = row + min(c, width - 4);
  if constexpr (sizeof(In) == 4) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
  } else {
    const uint2 all = *reinterpret_cast<const uint2*>(from);
    const In* const parts = reinterpret_cast<const In*>(&all);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = to_float(parts[e]);
  }
}

/// The first column of a lane's i-th four of a row.
__device__ inline int norm_column(int i) {
  return 4 * (static_cast<int>(threadIdx.x) % kWarp + i * kWarp);
}

struct RowMoments {
  float mean, scale;  ///< scale: 1 / standard deviation
};

/// Sums of a lane's fours: the first, second, … of each by itself, so that additions need not wait for each
/// other.
struct FourSums {
  float part[4] = {};
  __device__ float all() const { return (part[0] + part[1]) + (part[2] + part[3]); }
};

/// Of a row of `width` of which each(body) gives this lane's fours: body(column, values), in the order of the
/// columns and twice. Columns beyond the row are zeros.
template <class Each>
__device__ inline RowMoments row_moments(const Each& each, int width, float epsilon) {
  const float share = 1.0f / static_cast<float>(width);
  FourSums sums, squares;
  each([&](int, const float(&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums.part[e] += v[e];
  });
  // A product of its own, or some kernels would subtract it within an FMA.
  const float mean = __fmul_rn(warp_sum(sums.all()), share);
  each([&](int c, const float(&v)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float d = c + e < width ? v[e] - mean : 0.0f;
      squares.part[e] = fmaf(d, d, squares.part[e]);
    }
  });
  return {mean, rsqrtf(fmaf(warp_sum(squares.all()), share, epsilon))};
}

/// kHeld: fours of the row that a lane keeps in registers, where with_held() finds them fit; 0: any rows,
/// read three times.
template <class In, int kHeld>
class RowNorm {
 public:
  static constexpr int kCount = kHeld == 0 ? 1 : kHeld;
  using Held = float[kCount][4];

  static __device__ int column(int i) { return norm_column(i); }
  /// Reads gain and shift, which are the same for every row. Without a norm rows are copied.
  __device__ RowNorm(const LayerNorm& norm, int width) : norm_(norm), width_(width) {
    if constexpr (kHeld != 0) {
      fill(gain_, 1.0f);
      fill(shift_, 0.0f);
      if (norm.weight != nullptr) read_held(gain_, norm.weight);
      if (norm.weight != nullptr && norm.bias != nullptr) read_held(shift_, norm.bias);
    }
  }

  /// Calls put(column, values) for fours of columns below `columns`, a multiple of four; zeros from the width
  /// of x on.
  template <class Put>
  __device__ void operator()(const In* x, int columns, const Put& put) {
    of([&](Held& held) { read_held(held, x); }, columns, put, x);
  }
  /// The same for a row that make(values) makes: a lane's fours begin at column(i), those beyond the row are
  /// not looked at. Held rows alone.
  template <class Make, class Put>
  __device__ void of(const Make& make, int columns, const Put& put, const In* x = nullptr) {
    // Rows that are held consist of fours.
    const auto inside = [&](int c, int e) { return (kHeld != 0 ? c : c + e) < width_; };
    const auto each = [&](const auto& body) {
      if constexpr (kHeld == 0) {
        for (int c = column(0); c < columns; c += 4 * kWarp) read_any(x, c), body(0, c);
      } else {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) body(i, column(i));
      }
    };
    if constexpr (kHeld != 0) {
      make(value_);
      each([&](int i, int c) {
#pragma unroll
        for (int e = 0; e < 4; ++e) value_[i][e] = inside(c, e) ? value_[i][e] : 0.0f;
      });
    }
    RowMoments moments{0.0f, 1.0f};
    if (norm_.weight != nullptr) {
      moments = row_moments([&](const auto& body) { each([&](int i, int c) { body(c, value_[i]); }); },
                            width_, norm_.epsilon);
    }
    each([&](int i, int c) {
      float result[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        result[e] = inside(c, e)
                        ? fmaf((value_[i][e] - moments.mean) * moments.scale, gain_[i][e], shift_[i][e])
                        : 0.0f;
      }
      if (c < columns) put(c, result);
    });
  }

 private:
  static __device__ void fill(Held& held, float value) {
#pragma unroll
    for (int i = 0; i < kCount * 4; ++i) held[i / 4][i % 4] = value;
  }
  template <class From>
  __device__ void read_held(Held& held, const From* row) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) read_four(held[i], row, column(i), width_);
  }
  __device__ void read_any(const In* x, int c) {
    const bool normed = norm_.weight != nullptr, shifted = normed && norm_.bias != nullptr;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool inside = c + e < width_;
      value_[0][e] = inside ? to_float(x[c + e]) : 0.0f;
      gain_[0][e] = inside && normed ? norm_.weight[c + e] : 1.0f;
      shift_[0][e] = inside && shifted ? norm_.bias[c + e] : 0.0f;
    }
  }

  const LayerNorm norm_;
  const int width_;
  Held value_, gain_, shift_;
};

/// Calls body(std::integral_constant<int, kHeld>) with the form for these rows.
template <class Body>
auto with_held(const Matrix& x, const LayerNorm& norm, const Body& body) {
  constexpr int kFours = 4 * kWarp;
  const auto aligned = [](const void* data, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  };
  const bool fours = x.columns > 0 && x.columns % 4 == 0 && x.stride % 4 == 0 &&
                     aligned(x.data, 4 * dtype_size(x.dtype)) && aligned(norm.weight, 16) &&
                     aligned(norm.bias, 16);
  if (fours && x.columns <= 4 * kFours) return body(std::integral_constant<int, 4>());
  if (fours && x.columns <= 6 * kFours) return body(std::integral_constant<int, 6>());
  if (fours && x.columns <= 10 * kFours) return body(std::integral_constant<int, 10>());
  return body(std::integral_constant<int, 0>());
}

}  // namespace inkling::cuda
