// Counts what operator new hands out in a test program, and makes a chosen allocation fail.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>

#include "engine/base/error.h"

namespace inkling::test {

/// Watches allocations from its construction on. One at a time, and no other thread allocates meanwhile.
class AllocationMeter {
 public:
  /// With `fail_at` = k > 0, the k-th allocation from now throws std::bad_alloc, once.
  explicit AllocationMeter(std::uint64_t fail_at = 0);
  ~AllocationMeter();
  AllocationMeter(const AllocationMeter&) = delete;
  AllocationMeter& operator=(const AllocationMeter&) = delete;

  std::size_t peak_bytes() const;  ///< most bytes alive at once that were allocated since
  bool failed() const;             ///< whether the chosen allocation was reached
};

/// Fails allocation 1, 2, 3… of `work`, which gives a Result, until it succeeds, and says how many there are.
/// Each failure must be a clean Error{out_of_memory}.
template <class Work>
int fail_each_allocation(Work&& work) {
  for (std::uint64_t k = 1;; ++k) {
    bool failed = false, fine = false;
    Code code = Code::internal;
    {
      AllocationMeter meter(k);
      const auto result = work();
      failed = meter.failed();
      fine = result.has_value();
      if (!fine) code = result.error().code();
    }
    CAPTURE(k);
    if (!failed) {
      CHECK(fine);
      return static_cast<int>(k - 1);
    }
    if (!fine) CHECK(code == Code::out_of_memory);  // the standard library may survive on its own
    CHECK(work());
  }
}

}  // namespace inkling::test
