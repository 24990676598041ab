// The largest of errors, for bounds that nothing but a number may pass.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace inkling::test {

/// The larger of two errors. NaN is as large as can be: what is not a number fails every bound, where
/// std::max(worst, NaN) would have kept `worst`.
inline double worse(double worst, double error) {
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
}

}  // namespace inkling::test
