// Communicator: processes that train one model together.
#pragma once

#include <span>

namespace inkling {

/// Every process calls the same functions in the same order. Throws Error{device} when the others are lost.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  virtual int rank() const noexcept = 0;  ///< in [0, size())
  virtual int size() const noexcept = 0;
  /// Replaces `values` by their sums over all processes: the same bits in each, and in every run with as many
  /// of them.
  virtual void sum(std::span<float> values) = 0;
  virtual void sum(std::span<double> values) = 0;
};

}  // namespace inkling
