// The op top() against a stable sort, for whatever computes it.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "tests/random.h"

namespace inkling::test {

/// top_of(x, rows, k) returns the values and ids that the op gives for `rows` rows of x.
template <class TopOf>
void check_top(const TopOf& top_of) {
  Random random(12);
  const auto check = [&](const std::vector<float>& x, std::int64_t rows, std::int64_t k) {
    const auto n = static_cast<std::int64_t>(x.size()) / rows;
    CAPTURE(n);
    CAPTURE(k);
    const auto [values, ids] = top_of(x, rows, k);
    for (std::int64_t m = 0; m < rows; ++m) {
      std::vector<float> row(x.begin() + m * n, x.begin() + (m + 1) * n);
      for (float& v : row) v = std::isnan(v) ? -INFINITY : v;
      const auto at = [&row](std::int32_t id) { return row[static_cast<std::size_t>(id)]; };
      std::vector<std::int32_t> order(static_cast<std::size_t>(n));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [at](std::int32_t a, std::int32_t b) { return at(a) > at(b); });
      for (std::int64_t i = 0; i < k; ++i) {
        const auto place = static_cast<std::size_t>(m * k + i);
        CHECK(ids[place] == order[static_cast<std::size_t>(i)]);
        CHECK(values[place] == at(ids[place]));
      }
    }
  };
  check(random.normals(3 * 50257), 3, 50);
  check(random.normals(2 * 1000), 2, 1000);
  check(random.normals(5 * 70), 5, 1);
  check(random.normals(5000), 1, 1024);
  check({-0.0f, 1.0f, 0.0f, -2.0f}, 1, 4);
  check(std::vector<float>(20000, -INFINITY), 2, 7);  // more equals than any list holds
  std::vector<float> rounded = random.normals(2 * 50257, 3.0);
  for (float& v : rounded) v = std::round(v);
  check(rounded, 2, 300);
  rounded[17] = -INFINITY;
  rounded[18] = std::numeric_limits<float>::max();
  check(rounded, 2, 3);
  for (std::size_t i = 0; i < rounded.size(); i += 2) rounded[i] = i % 4 == 0 ? NAN : -NAN;
  check(rounded, 2, 300);
  check({NAN, -1.0f, -INFINITY, -NAN}, 1, 4);
}

}  // namespace inkling::test
