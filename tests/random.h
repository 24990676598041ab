// Deterministic random data for tests: splitmix64, the same everywhere (std's distributions are not).
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

namespace inkling::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// In [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// In [low, high].
  std::int64_t range(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(high - low + 1));
  }
  float normal(double scale = 1.0) {
    const double r = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return static_cast<float>(scale * r * std::cos(2.0 * std::numbers::pi * uniform()));
  }
  std::vector<float> normals(std::int64_t n, double scale = 1.0) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (float& x : v) x = normal(scale);
    return v;
  }

 private:
  std::uint64_t state_;
};

}  // namespace inkling::test
