// Random inputs and the helpers shared by the tests of attention.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "engine/dtype.h"

namespace inkling::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  /// In [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  std::vector<float> normals(std::int64_t count, float scale = 1.0f) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal() * scale;
    return values;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

/// `value` as a tensor of `dtype` would hold it.
inline float rounded(float value, DType dtype) {
  if (dtype == DType::bf16) return static_cast<float>(bf16(value));
  if (dtype == DType::f16) return static_cast<float>(f16(value));
  return value;
}

inline bool close(double got, double want, double tolerance) {
  return std::isfinite(got) && std::fabs(got - want) <= tolerance;
}

}  // namespace inkling::test
