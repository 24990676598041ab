// Recorder: a chain of ops that comes back, step after step, with nothing changed but what memory holds. A
// device may take it down once and repeat it at a fraction of the cost. This class is the CPU's, where
// starting an op costs nothing; another device's overrides it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

namespace inkling {

class Recorder {
 public:
  virtual ~Recorder() = default;
  Recorder() = default;
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  /// Calls `ops`, or repeats what it did at an earlier call with an equal key. The key stands for all that
  /// the ops were told: shapes, addresses, choices. `ops` copies nothing in or out and waits for nothing.
  virtual void run(std::span<const std::uint64_t> key, const std::function<void()>& ops) {
    (void)key;
    ops();
  }
};

}  // namespace inkling
