// Allocations of a test binary, one source of which includes count_allocations.h: how many there were, and
// which one fails.
#pragma once

#include <atomic>
#include <cstdint>

namespace inkling::test {

inline std::atomic<std::int64_t> allocations{0};

/// While it lives, one allocation of this thread fails: the n-th from here on, n = 0 the next.
class FailingAllocation {
 public:
  explicit FailingAllocation(std::int64_t n) { before_ = n; }
  ~FailingAllocation() { before_ = kNone; }
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;

  /// Whether it has come to that.
  bool failed() const noexcept { return before_ == kNone; }

 private:
  friend bool counts() noexcept;
  static constexpr std::int64_t kNone = -1;
  static inline thread_local std::int64_t before_ = kNone;  // allocations before the one that fails
};

/// Counts an allocation; false for one that is to fail.
inline bool counts() noexcept {
  ++allocations;
  std::int64_t& before = FailingAllocation::before_;
  return before == FailingAllocation::kNone || before-- != 0;
}

}  // namespace inkling::test
