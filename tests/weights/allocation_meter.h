// Counts what operator new hands out in this test program, and makes a chosen allocation fail.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inkling::test {

/// Watches allocations from its construction on. One at a time.
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

}  // namespace inkling::test
